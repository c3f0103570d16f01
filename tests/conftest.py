import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.paths import SHARED

# The same examples on every run; no deadline, because machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def interrupts_are_heard() -> Iterator[None]:
    """Undo what shells do to programs in the background: these, and their children, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``shared`` where the development data are missing."""
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason="needs ../shared beside this checkout"))
