"""Java exceptions as errors of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qpnuclei.errors import QpnucleiError
from qpnuclei.qupath.paquo import jvm


@contextmanager
def java_errors(error_type: type[QpnucleiError], what: str, hint: str = "") -> Iterator[None]:
    """Turn a Java exception into one of our errors."""
    import jpype

    try:
        yield
    except jpype.JException as error:
        if isinstance(error, jvm.java_class("java.lang.OutOfMemoryError")):
            hint = "give Java more memory, for example PAQUO_JAVA_OPTS=-Xmx32g"
        raise error_type(f"{what}: {reason_of(error)}", hint) from error


def reason_of(error: Any) -> str:
    """Return the message of a Java exception in one line."""
    text = str(error.message() or error.toString()) if hasattr(error, "message") else str(error)
    return " ".join(text.split())[:300]
