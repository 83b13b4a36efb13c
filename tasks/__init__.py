"""Prefect tasks, one file each, and what they need: settings, the store, files, loaded models."""
