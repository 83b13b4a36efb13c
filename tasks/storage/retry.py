"""Transient errors of a store are retried with back-off, permanent ones raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prefect_regional_diffusion.sampling_core.errors import StoreError
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.retry import Retry
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.storage.failures import Operation, is_permanent, problem_of, remember

logger = plain_logger(__name__)

T = TypeVar("T")


def retry_transient(url: str, work: Callable[[], T], operation: Operation, field: str = "store") -> T:
    """What `work` returns, tried again with growing pauses while the store at `url` fails.

    An object store that is down, throttles (503) or times out comes back, and a full disk may be emptied. So
    only after `store_retry_seconds` seconds, or at once for a failure that will not pass, this raises StoreError.
    `field` is what the error calls the store. What a refusal means depends on whether the store has done such an
    operation before.
    """

    def log_retry(error: Exception, pause: float) -> None:
        logger.warning("%s %s; trying again in %.1f s", url, problem_of(error, operation), pause)

    retry = Retry(settings().store_retry_seconds, lambda error: not is_permanent(error, url, operation), log_retry)
    try:
        result = retry.call(work)
    except Exception as error:  # each file system has errors of its own
        raise StoreError(field, url, problem_of(error, operation, retry.waited)) from error
    remember(url, operation)
    return result
