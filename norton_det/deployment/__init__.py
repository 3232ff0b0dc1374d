"""Deployment: the fastest equal implementation of a network for inference."""
