"""Deployment: the fastest equal implementation of a network for inference."""

import norton_det.deployment.decomposed
import norton_det.deployment.linear
import norton_det.deployment.roi_align  # noqa: F401  each registers its implementations
