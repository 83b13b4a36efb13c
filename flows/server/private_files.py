"""Files that only this user may read or write, in folders where others may have planted something."""

from __future__ import annotations

import os
from pathlib import Path

from prefect_regional_diffusion.tasks.machine.regular_files import NoRegularFileError, open_regular

MOST_BYTES = 4096


class NotPrivateError(OSError):
    """A file or folder that is not this user's own, or no plain one; the message says which."""


def private_folder(folder: Path) -> None:
    """Make a folder, and those above it, that only this user may enter; one that exists is closed to others.

    Raises NotPrivateError where it is another user's.
    """
    old_umask = os.umask(0o077)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(old_umask)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise NotPrivateError(f"{folder} belongs to another user")
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def open_private(path: Path, flags: int) -> int:
    """A descriptor of this user's own plain file; one that is made has mode 0600. A link is never followed.

    Raises NotPrivateError where something else is there, OSError where it cannot be opened.
    """
    try:
        descriptor = open_regular(path, flags)
    except NoRegularFileError as error:
        raise NotPrivateError(f"{path} is {error.kind}, and no plain file") from error
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_nlink != 1:
        os.close(descriptor)
        raise NotPrivateError(f"{path} is not this user's own, or has another name elsewhere")
    return descriptor


def read_private(path: Path) -> str:
    """The text of a small file of this user's own. Raises OSError, NotPrivateError, or ValueError if it is too long."""
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES} bytes")
    return content.decode()
