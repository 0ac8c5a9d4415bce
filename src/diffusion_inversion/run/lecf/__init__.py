"""LECF (He et al. 2022, arXiv 2210.07574): images of many sentences of each class, of which CLIP keeps some."""
