"""Write the weights of a trained model to a folder to give away: ``python scripts/export.py RUN FOLDER``."""

import sys

from pyro_zf.cli import export_main

if __name__ == "__main__":
    sys.exit(export_main())
