"""Numerical linear algebra on plain tensors: batched, in float64, without any network."""
