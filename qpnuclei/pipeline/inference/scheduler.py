"""The scheduler of a Dask cluster: read its address, and connect to it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qpnuclei.errors import UsageError, WorkerError, short_reason
from qpnuclei.system.files import read_regular

if TYPE_CHECKING:
    from distributed import Client

#: Time to connect to a scheduler, and time for it to finish its scheduler file, in seconds.
CONNECTED_AFTER_S, WRITTEN_AFTER_S = 10, 1.0

_LOCAL = "local:"


def workers_here(address: str) -> int | None:
    """Return N of ``local:N``, the workers to start here; None for a scheduler's address.

    Raises
    ------
    UsageError
        If N is not a positive integer.

    Examples
    --------
    >>> workers_here("local:4"), workers_here("tcp://head-node:8786")
    (4, None)
    """
    number = address.removeprefix(_LOCAL)
    if number != address:
        if not number.isdecimal() or int(number) < 1:
            raise UsageError(
                f"--dask {address!r}: the number of workers is not a positive integer",
                "for example local:4",
            )
        return int(number)
    return None


def _scheduler_of(address: str) -> str:
    """Return the address; of a scheduler file, return the address in it."""
    found = _in_file(Path(address)) if Path(address).is_file() else address
    if not isinstance(found, str) or not _has_host_and_port(found):
        raise UsageError(
            f"--dask {address!r} is neither the address of a scheduler nor a scheduler file",
            "for example tcp://head-node:8786, or local:4 for workers on this machine",
        )
    return found


def _in_file(path: Path) -> object:
    """Return the address in a scheduler file; None without one.

    The scheduler may still be writing the file, so a file that is not valid JSON is read again.
    """
    end = time.monotonic() + WRITTEN_AFTER_S
    while True:
        try:
            return json.loads(read_regular(path))["address"]
        except (OSError, KeyError, TypeError, RecursionError):
            return None
        except ValueError:
            if time.monotonic() > end:
                return None
            time.sleep(0.05)


def _has_host_and_port(address: str) -> bool:
    try:
        parts = urlsplit(address if "://" in address else f"tcp://{address}")
        return bool(parts.hostname and parts.port)
    except ValueError:  # the port is not a number
        return False


def check_scheduler(address: str, asks: bool = True) -> None:
    """Check that `connected` would succeed.

    Parameters
    ----------
    asks : bool
        Whether to connect to the scheduler; otherwise only the form of the address is checked.

    Raises
    ------
    UsageError, WorkerError
        As `connected` does.
    """
    if workers_here(address) is not None:
        if asks:
            require_dask()
        return
    if not asks:
        _scheduler_of(address)
        return
    with connected(address):
        pass


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Connect to a scheduler.

    Parameters
    ----------
    address : str
        ``tcp://host:8786``, or a scheduler file.

    Raises
    ------
    UsageError
        If Dask is not installed, or the address is not valid.
    WorkerError
        If no scheduler answers.
    """
    require_dask()
    import distributed

    scheduler = _scheduler_of(address)
    with quiet():
        try:
            client = distributed.Client(scheduler, timeout=CONNECTED_AFTER_S)
        except OSError as error:
            raise WorkerError(
                f"no Dask scheduler answers at {address}: {short_reason(error)}",
                "start it, and give the address that dask scheduler prints, or its scheduler file",
            ) from error
        except ValueError as error:
            raise UsageError(
                f"--dask {address!r}: {short_reason(error)}",
                "give the address that dask scheduler prints, or its scheduler file",
            ) from error
        with client:
            yield client


def require_dask() -> None:
    """Check that Dask is installed.

    Raises
    ------
    UsageError
        If it is not.
    """
    try:
        import distributed  # noqa: F401 - only to see whether it is installed
    except ImportError as error:
        raise UsageError(
            "--dask needs Dask, which is not installed", "pip install 'qpnuclei[dask]'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Let Dask log only errors: this package reports on workers and units itself."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
