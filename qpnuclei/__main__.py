"""``python -m qpnuclei``: the same as the ``qpnuclei`` command."""

from __future__ import annotations

import atexit
import gc

from qpnuclei.system.interrupts import ending_on_interrupt

#: The start of a command makes up to 95,000 objects, and needs nearly all of them.
_OBJECTS_OF_A_START = 150_000


def main() -> None:
    """Run the command line. Imports happen inside, so that Ctrl-C works during them too."""
    collect_later()
    # Python would search for cyclic garbage several times at its end: the system frees it all.
    atexit.register(gc.freeze)
    with ending_on_interrupt():
        from qpnuclei.cli.app import main as command_line

        command_line()


def collect_later() -> None:
    """Postpone the search for cyclic garbage until after the start, and exempt imported objects."""
    usual = gc.get_threshold()

    def collect_as_usual(*_: object) -> None:
        gc.callbacks.remove(collect_as_usual)
        gc.set_threshold(*usual)
        gc.freeze()  # no later search visits the objects made during the start

    gc.callbacks.append(collect_as_usual)
    gc.set_threshold(_OBJECTS_OF_A_START)


if __name__ == "__main__":
    main()
