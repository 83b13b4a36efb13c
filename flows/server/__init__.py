"""Prefect servers of our own: who may ask them, and what they are given."""
