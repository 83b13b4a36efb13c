"""A run in this process: a prepared job with its models, store and state."""
