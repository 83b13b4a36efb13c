"""This machine: its settings, devices, logs, secrets, and how a task is declared."""
