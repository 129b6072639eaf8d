"""Evaluate a trained model: ``python scripts/evaluate.py RUN --split test --num-samples 25``."""

import sys

from pyro_zf.cli import evaluate_main

if __name__ == "__main__":
    sys.exit(evaluate_main())
