"""Masks that were drawn already, so that each distinct one is drawn once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from prefect_regional_diffusion.sampling_core.tensors.types import AnyMask


class DrawnMasks:
    """Masks by what they were drawn from, at most so many bytes of them: the ones that were asked for last.

    Whoever is given one must not change it. Several threads may ask.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._masks: OrderedDict[str, AnyMask] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str, draw: Callable[[], AnyMask]) -> AnyMask:
        """The mask under a key, which must tell all that it depends on; it is drawn if it is not there."""
        with self._lock:
            found = self._masks.get(key)
            if found is not None:
                self._masks.move_to_end(key)
                return found
        mask = draw()
        with self._lock:
            if key not in self._masks:
                self._masks[key] = mask
                self._bytes += mask.nbytes
            while self._bytes > self._most:
                _, oldest = self._masks.popitem(last=False)
                self._bytes -= oldest.nbytes
        return mask
