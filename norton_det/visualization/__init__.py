"""Visualization: reading and writing of images and videos, and drawing of detections."""
