"""What is found in the place of an object and is none."""

from __future__ import annotations


class UnfitError(Exception):
    """What lies under a key is not what is written there; the text says why. It counts as absent."""
