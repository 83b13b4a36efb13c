"""What people see of a run: artifacts, previews, contact sheets, progress."""
