"""Evaluation: predictions, COCO metrics and results files, accuracy."""
