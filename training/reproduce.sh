#!/bin/sh
# Table 1 of the paper on your machine: training/reproduce.sh DATA [options]; --help lists them.
exec "${PYTHON:-python3}" "$(dirname "$0")/reproduce.py" "$@"
