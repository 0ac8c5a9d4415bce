"""Whether generated images are copies of training images: how far one is from another, and how near is too near."""
