"""Export a trained model, with a model card: ``python scripts/export.py RUN FOLDER``."""

import sys

from pyro_zf.cli import export_main

if __name__ == "__main__":
    sys.exit(export_main())
