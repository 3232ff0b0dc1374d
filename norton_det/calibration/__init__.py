"""Calibration: what is left of a network is refitted to the dense one's outputs on unlabelled images."""
