"""A job and its masks -> its sampling run, its cost, and warnings about it."""
