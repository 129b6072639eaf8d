"""Prepare data in advance: ``python scripts/prepare_data.py timit``; ``--help`` lists the options."""

import sys

from pyro_zf.cli import prepare_main

if __name__ == "__main__":
    sys.exit(prepare_main())
