"""Interpolate between the latents of two sequences: ``python scripts/interpolate.py RUN``."""

import sys

from pyro_zf.cli import interpolate_main

if __name__ == "__main__":
    sys.exit(interpolate_main())
