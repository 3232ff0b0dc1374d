"""The pipeline: decompose, prune, compress."""
