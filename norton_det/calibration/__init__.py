"""Calibration: a compressed network is refitted to the dense one's outputs on images without labels."""
