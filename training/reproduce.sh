#!/bin/sh
# Table 1 of the paper on your machine: training/reproduce.sh DATA [options]; --help lists them.
# PYTHON is one that qpnuclei is installed in (make table1 sees to it).
exec "${PYTHON:-python3}" "$(dirname "$0")/reproduce.py" "$@"
