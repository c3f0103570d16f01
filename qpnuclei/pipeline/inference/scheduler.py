"""The scheduler of a Dask cluster: its address, and the connection to it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qpnuclei.errors import UsageError, WorkerError
from qpnuclei.system.files import read_regular

if TYPE_CHECKING:
    from distributed import Client

#: How long to look for a scheduler, and how long one may take to write its file, in seconds.
CONNECTED_AFTER_S, WRITTEN_AFTER_S = 10, 1.0

_LOCAL = "local:"


def workers_here(address: str) -> int | None:
    """Return N of ``local:N``, workers to begin on this machine; None for a scheduler's address.

    Raises
    ------
    UsageError
        If N is no number.

    Examples
    --------
    >>> workers_here("local:4"), workers_here("tcp://head-node:8786")
    (4, None)
    """
    number = address.removeprefix(_LOCAL)
    if number != address:
        if not number.isdecimal() or int(number) < 1:
            raise UsageError(f"--dask {address!r}: how many workers?", "for example local:4")
        return int(number)
    return None


def _scheduler_of(address: str) -> str:
    """Return an address, or that which is in a file that a scheduler wrote."""
    found = _in_file(Path(address)) if Path(address).is_file() else address
    if not isinstance(found, str) or not _has_host_and_port(found):
        raise UsageError(
            f"--dask {address!r} is neither the address of a scheduler nor the file of one",
            "for example tcp://head-node:8786, or local:4 for workers on this machine",
        )
    return found


def _in_file(path: Path) -> object:
    """Return the address in a file, which the scheduler may still be writing; None without one."""
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
    except ValueError:  # the port is no number
        return False


def check_scheduler(address: str, asks: bool = True) -> None:
    """Refuse what `connected` would refuse.

    Parameters
    ----------
    asks : bool
        Whether the scheduler is asked; otherwise only the form of the address is looked at.

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
        ``tcp://host:8786``, or the file that it wrote.

    Raises
    ------
    UsageError
        If Dask is not installed, or the address is none.
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
                "start it, and give the address that dask scheduler prints, or the file that it "
                "wrote",
            ) from error
        except ValueError as error:
            raise UsageError(
                f"--dask {address!r}: {short_reason(error)}",
                "give the address that dask scheduler prints, or the file that it wrote",
            ) from error
        with client:
            yield client


def require_dask() -> None:
    """Refuse a cluster where Dask is missing.

    Raises
    ------
    UsageError
        If it is.
    """
    try:
        import distributed  # noqa: F401 - whether it is there
    except ImportError as error:
        raise UsageError(
            "--dask needs Dask, which is not installed", "pip install 'qpnuclei[dask]'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Let Dask say only what is wrong: what becomes of workers and units is said here."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def short_reason(error: Exception) -> str:
    """Return the text of an error of Dask in one line, and not all of it."""
    return " ".join(str(error).split())[:200]
