"""The command line `regional`."""
