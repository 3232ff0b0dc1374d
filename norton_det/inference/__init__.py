"""A detector by file or name, and what it detects in images."""
