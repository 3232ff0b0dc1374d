"""Published and measured results, and figures of them."""
