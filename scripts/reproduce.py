"""Reproduce tables and figures of the papers: ``python scripts/reproduce.py zf-table1 --scale small``."""

import sys

from pyro_zf.cli import reproduce_main

if __name__ == "__main__":
    sys.exit(reproduce_main())
