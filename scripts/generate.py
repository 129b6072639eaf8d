"""Generate sequences with a trained model: ``python scripts/generate.py RUN --task continue``."""

import sys

from pyro_zf.cli import generate_main

if __name__ == "__main__":
    sys.exit(generate_main())
