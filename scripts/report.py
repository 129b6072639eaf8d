"""Summarise runs on an HTML page: ``python scripts/report.py RUN...``."""

import sys

from pyro_zf.cli import report_main

if __name__ == "__main__":
    sys.exit(report_main())
