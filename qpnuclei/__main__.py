"""``python -m qpnuclei``: the same as the ``qpnuclei`` command."""

from __future__ import annotations

import os

from qpnuclei.system.interrupts import ending_on_interrupt


def main() -> None:
    """Run the command line. Imports happen inside, so that Ctrl-C works during them too."""
    # What other packages would add to pydantic is neither searched for nor run.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with ending_on_interrupt():
        from qpnuclei.cli.app import main as command_line

        command_line()


if __name__ == "__main__":
    main()
