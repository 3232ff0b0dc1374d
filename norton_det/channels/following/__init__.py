"""The channels of a network, followed through its operators while it runs on an example."""
