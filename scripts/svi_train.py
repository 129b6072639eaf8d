"""Train a model: ``python scripts/svi_train.py --dataset mnist``; ``--help`` lists the options."""

import sys

from pyro_zf.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
