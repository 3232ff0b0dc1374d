"""Search for a compression configuration within a budget."""
