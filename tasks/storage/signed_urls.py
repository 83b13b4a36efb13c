"""Addresses at which anybody can fetch a picture from a bucket for a while, without keys."""

from __future__ import annotations

from collections.abc import Sequence

import fsspec

from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.machine.secrets import reason_of
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.storage.credentials import storage_options

logger = plain_logger(__name__)


def signed_urls(places: Sequence[str]) -> list[str]:
    """An address for each place, which holds for `REGIONAL_SIGNED_URL_HOURS`; none if that is 0.

    Places in folders, and in object stores that sign nothing, have none.
    """
    seconds = round(settings().signed_url_hours * 3600)
    urls = list[str]()
    for place in places if seconds else ():
        try:
            file_system, path = fsspec.url_to_fs(place, **storage_options(place))
            urls.append(file_system.sign(path, expiration=seconds))
        except NotImplementedError:
            continue
        except Exception as error:  # noqa: BLE001 - an address is an extra: the picture is there
            logger.warning("no signed address: %s", reason_of(error))
    return urls
