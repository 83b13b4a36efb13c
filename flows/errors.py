"""How a flow can end that is nobody's mistake. Without imports, so that the command line starts at once."""

from __future__ import annotations


class NotDrawnError(RuntimeError):
    """Some pictures are missing, once everything that can be drawn is."""
