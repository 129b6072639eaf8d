"""Between two sequences in the path of their latents: ``python scripts/interpolate.py RUN``."""

import sys

from pyro_zf.cli import interpolate_main

if __name__ == "__main__":
    sys.exit(interpolate_main())
