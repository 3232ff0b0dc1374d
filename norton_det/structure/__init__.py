"""From a spec to a network, and back."""
