"""Few-shot learners on the frozen features of CLIP, one idea a file: formulas, not files or folders."""
