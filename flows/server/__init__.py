"""Prefect servers that this package starts: who may send requests to them, and their environment."""
