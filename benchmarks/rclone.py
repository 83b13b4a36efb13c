"""rclone's S3 server, on a folder.

What is measured shares the processors with it, which nobody's store does: a request takes at most a third of what it
takes moto, the server of tests. Tests keep that one, which knows more of S3 (parts of an object, signed addresses).
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import free_port
from tests.s3 import KEY, SECRET, serving


@contextmanager
def s3_server(folder: Path, *buckets: str) -> Generator[int]:
    """Its port on loopback; objects and the log are in `folder`."""
    port, objects = free_port(), folder / "s3"
    objects.mkdir()
    program = str(Path(sys.executable).parent / "rclone")
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", "--config", ""]
    with serving([program, "serve", "s3", *options, str(objects)], port, folder, *buckets):
        yield port
