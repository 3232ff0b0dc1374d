"""Which channels of a network must be pruned together, and narrowing a network to the kept ones."""
