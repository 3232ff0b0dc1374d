"""Campaigns of faults: what is promised, tried with thousands of seeded faults: ``python -m benchmarks.faults``."""
