"""How stores fail: which failures pass by themselves, and the words for each kind.

What will not pass at the start may pass later: once a store has let this process do something, to refuse the same (403)
is a clock that drifts, a token that is renewed, or a proxy that throttles.
"""

from __future__ import annotations

import errno
from typing import Literal

from prefect_regional_diffusion.tasks.machine.secrets import reason_of

Operation = Literal["read", "write", "list", "remove"]
"""Operations that a store's credentials may permit or not."""

_FOR_GOOD = (
    *(PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError),
    *(ValueError, TypeError),
)
"""Wrong keys, no such bucket, a file where a folder should be: waiting mends none of them."""
_NUMBERS_FOR_GOOD = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
_NO_KEYS = {"NoCredentialsError", "PartialCredentialsError"}
_NAMES_FOR_GOOD = {
    *_NO_KEYS,
    *("ParamValidationError", "InvalidBucketName", "AuthorizationHeaderMalformed", "PermanentRedirect"),
}
"""Classes of botocore, raised before a request is sent, and S3's own codes; the last two are a wrong region."""
_NAMES_OF_A_LOST_UPLOAD = {"NoSuchUpload"}
"""A store that was restarted, or tidied up, has lost the parts of an upload: a new upload succeeds."""

_completed: set[tuple[str, Operation]] = set()
"""Operations that have succeeded in this process, by the store's URL."""


def remember(url: str, *operations: Operation) -> None:
    """These operations have succeeded at `url`."""
    _completed.update((url, operation) for operation in operations)


def is_permanent(error: Exception, url: str, operation: Operation) -> bool:
    """Whether the store at `url` that fails with this error will do so again, however long one waits."""
    if (url, operation) in _completed and (_refused_by_a_server(error) or _code_of(error) in _NAMES_OF_A_LOST_UPLOAD):
        return False
    if isinstance(error, _FOR_GOOD) or (isinstance(error, OSError) and error.errno in _NUMBERS_FOR_GOOD):
        return True
    return not _names(error).isdisjoint(_NAMES_FOR_GOOD)


def problem_of(error: Exception, operation: Operation, waited: float = 0.0) -> str:
    """What is wrong with a store that fails with this error, after a verb's subject: `does not exist: ...`.

    `waited` is for how many seconds it was tried.
    """
    retries = f" (tried for {waited:.0f} s)" if waited >= 1 else ""
    return f"{_words(error, operation)}{retries}: {reason_of(error)}"


def _words(error: Exception, operation: Operation) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, PermissionError) or not _names(error).isdisjoint(_NO_KEYS):
        return f"gives no permission to {operation}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "has no space left"
    if number == errno.EROFS:
        return "is read-only"
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return "is no folder, or has a file where a folder should be"
    permanent = isinstance(error, _FOR_GOOD) or number in _NUMBERS_FOR_GOOD or _names(error) & _NAMES_FOR_GOOD
    return "cannot be used" if permanent else "does not answer"


def _refused_by_a_server(error: Exception) -> bool:
    """Whether rights are refused, and not by this machine's own file systems: those give rights to people, for good."""
    return isinstance(error, PermissionError) and error.errno not in (errno.EACCES, errno.EPERM)


def _names(error: Exception) -> set[str | None]:
    """S3's code of an error, and its classes by name: botocore is slow to import, and not every store is S3."""
    return {_code_of(error), *(kind.__name__ for kind in type(error).__mro__)}


def _code_of(error: Exception) -> str | None:
    """S3's own code of an error: s3fs keeps botocore's error, with S3's answer, as the cause of its own."""
    match getattr(error.__cause__, "response", None):
        case {"Error": {"Code": str(code)}}:
            return code
        case _:
            return None
