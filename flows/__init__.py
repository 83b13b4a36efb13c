"""Flows: tasks put together, nothing else. The command line is here too."""
