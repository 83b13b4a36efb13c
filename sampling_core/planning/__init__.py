"""A job and its masks -> its sampling run, what it costs, and what a person should know of it."""
