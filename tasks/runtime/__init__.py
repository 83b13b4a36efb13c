"""A run in this process: a job prepared, with its models, store and state."""
