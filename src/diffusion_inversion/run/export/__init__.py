"""What a run made, written for other programs: its classifiers and its synthetic images, one format a file."""
