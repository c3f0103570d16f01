"""The public functions that combine several packages, a few lines each.

Import them from `qpnuclei` itself, like all public names: see `qpnuclei.__all__`.
"""
