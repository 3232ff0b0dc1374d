"""Data sets in COCO's format: reading, augmentation, sampling, checks, and a generated data set."""
