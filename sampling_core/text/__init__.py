"""Text that others wrote: as part of a line, and as JSON."""
