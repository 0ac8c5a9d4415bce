"""A small conditional GAN and its inversion: what the paper compares with in section 4.1 (figure 5)."""
