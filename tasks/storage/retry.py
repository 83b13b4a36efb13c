"""Patience with a store: what may pass is tried again, what will not is said at once.

What will not pass at the start may pass later: once a store has let this process do something, to refuse the same (403)
is a clock that drifts, a token that is renewed, or a proxy that throttles.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from prefect_regional_diffusion.sampling_core.errors import StoreError
from prefect_regional_diffusion.sampling_core.text.plain_text import plain
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.secrets import hide_keys
from prefect_regional_diffusion.tasks.machine.settings import settings

logger = plain_logger(__name__)

T = TypeVar("T")

_FOR_GOOD = (
    *(PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError),
    *(ValueError, TypeError),
)
"""Wrong keys, no such bucket, a file where a folder should be: waiting mends none of them."""
_NUMBERS_FOR_GOOD = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
_NAMES_FOR_GOOD = {
    *("NoCredentialsError", "PartialCredentialsError", "ParamValidationError"),
    *("InvalidBucketName", "AuthorizationHeaderMalformed", "PermanentRedirect"),
}
"""Classes of botocore, which says so before it asks, and S3's own codes; the last two are a wrong region."""
_NAMES_OF_A_LOST_UPLOAD = {"NoSuchUpload"}
"""A store that was restarted, or tidied up, has forgotten the parts of an object: written anew, it is written."""
_LONGEST_PAUSE = 15.0

Operation = Literal["read", "write", "list", "remove"]
"""What keys give the right to, one by one."""

_done: set[tuple[str, Operation]] = set()
"""What stores, by URL, have done in this process."""


def retry_transient(url: str, work: Callable[[], T], operation: Operation, field: str = "store") -> T:
    """What `work` returns, tried again with growing pauses while the store at `url` fails.

    An object store that is down, throttles (503) or times out comes back, and a full disk may be emptied. So
    only after `store_retry_seconds` seconds, or at once for a failure that will not pass, this raises StoreError.
    `field` is what the error calls the store. What a refusal means depends on whether the store has done such an
    operation before.
    """
    began, pause = time.monotonic(), 0.25
    while True:
        try:
            done = work()
        except Exception as error:  # each file system has errors of its own
            waited = time.monotonic() - began
            if is_permanent(error, url, operation) or waited + pause > settings().store_retry_seconds:
                raise StoreError(field, url, f"a store that answers ({reason_of(error)})") from error
            logger.warning("%s does not answer (%s); trying again in %.1f s", url, reason_of(error), pause)
        else:
            remember(url, operation)
            return done
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def remember(url: str, *operations: Operation) -> None:
    """The store at `url` has done what it was asked for."""
    _done.update((url, operation) for operation in operations)


def is_permanent(error: Exception, url: str, operation: Operation) -> bool:
    """Whether the store at `url` that fails with this error will do so again, however long one waits."""
    code = _code_of(error)
    if (url, operation) in _done and (_refused_by_a_server(error) or code in _NAMES_OF_A_LOST_UPLOAD):
        return False
    if isinstance(error, _FOR_GOOD) or (isinstance(error, OSError) and error.errno in _NUMBERS_FOR_GOOD):
        return True
    # By name: botocore is slow to import, and not every store is S3.
    names = {code, *(kind.__name__ for kind in type(error).__mro__)}
    return not names.isdisjoint(_NAMES_FOR_GOOD)


def _refused_by_a_server(error: Exception) -> bool:
    """Whether rights are refused, and not by this machine's own file systems: those give rights to people, for good."""
    return isinstance(error, PermissionError) and error.errno not in (errno.EACCES, errno.EPERM)


def _code_of(error: Exception) -> str | None:
    """S3's own code of an error: s3fs keeps botocore's error, with S3's answer, as the cause of its own."""
    match getattr(error.__cause__, "response", None):
        case {"Error": {"Code": str(code)}}:
            return code
        case _:
            return None


def reason_of(error: Exception) -> str:
    """An error of a library in one short line: they repeat what they were given, keys among it."""
    hide_keys()
    return plain(f"{type(error).__name__}: {error}", 160)
