"""Evaluation: predictions of detectors, COCO results and metrics, accuracy of classifiers."""
