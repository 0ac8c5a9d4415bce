"""Feature extractors, one a file: uint8 images in, one float32 vector an image out."""
