"""What a piece of code opens, and how much memory it takes: for tests that feed it what an attacker has written.

Two witnesses of opened files, because neither sees everything: an audit hook sees what Python opens, anywhere; inotify
sees whoever opens something in one folder, libraries written in other languages included.
"""

from __future__ import annotations

import ctypes
import gc
import os
import struct
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_EVENTS = ("open", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.symlink", "os.link")
_recorders: list[list[str]] = []

_IN_OPEN, _IN_DELETE, _IN_NONBLOCK = 0x20, 0x200, os.O_NONBLOCK


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _recorders or event not in _EVENTS:
        return
    # What is opened may be a descriptor, and the mode beside it is no path.
    for argument in arguments[:1] if event == "open" else arguments:
        if isinstance(argument, str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(argument))  # noqa: PTH100 - Path.resolve would follow links
            for recorder in _recorders:
                recorder.append(path)
            if event not in ("os.rename", "os.link", "os.symlink"):
                return


sys.addaudithook(_hook)


@contextmanager
def paths_touched() -> Generator[list[str]]:
    """The absolute paths, `..` resolved and links not, that Python opens, removes, makes or renames meanwhile."""
    recorder: list[str] = []
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.remove(recorder)


@contextmanager
def names_opened(folder: Path) -> Generator[list[str]]:
    """Names of the files directly in `folder` that this or another process opens or deletes meanwhile (inotify).

    The list is filled when the block ends.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(_IN_NONBLOCK)
    assert watch >= 0, os.strerror(ctypes.get_errno())
    names: list[str] = []
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(folder), _IN_OPEN | _IN_DELETE) >= 0
        yield names
        names += _names(watch)
    finally:
        os.close(watch)


def _names(watch: int) -> Iterator[str]:
    while True:
        try:
            events = os.read(watch, 1 << 16)
        except BlockingIOError:
            return
        at = 0
        while at < len(events):
            *_, length = struct.unpack_from("iIII", events, at)
            name = events[at + 16 : at + 16 + length].rstrip(b"\0")
            if name:  # without a name it is the folder itself
                yield os.fsdecode(name)
            at += 16 + length


class Memory:
    """How far the memory of this process has grown at its highest, in bytes, since this was made."""

    def __init__(self) -> None:
        # Else garbage that is collected meanwhile makes room that no growth is seen in. What is left is looked at by no
        # later collection: that takes a tenth of a second, and property tests measure hundreds of times.
        gc.collect()
        gc.freeze()
        # 5 resets the kernel's high-water mark to what is used now.
        Path("/proc/self/clear_refs").write_text("5")
        self._start = self._peak()

    def grown(self) -> int:
        return self._peak() - self._start

    @staticmethod
    def _peak() -> int:
        status = Path("/proc/self/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
