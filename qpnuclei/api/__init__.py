"""The public functions that combine several packages, a few lines each.

Import them from `qpnuclei` itself, as all public names: see `qpnuclei.__all__`.
"""
