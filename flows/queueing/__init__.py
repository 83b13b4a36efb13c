"""Runs that wait in a work pool: who is next."""
