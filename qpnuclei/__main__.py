"""``python -m qpnuclei``: the same as the ``qpnuclei`` command."""

from qpnuclei.cli.app import main

if __name__ == "__main__":
    main()
