"""Data sets in COCO's format: reading, augmentation, sampling, checks, synthetic ones."""
