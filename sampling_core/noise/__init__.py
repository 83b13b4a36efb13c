"""Noise: the initial one, and what stochastic steps draw."""
