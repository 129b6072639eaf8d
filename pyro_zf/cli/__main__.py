"""Entry point of ``python -m pyro_zf.cli COMMAND``."""

import sys

from pyro_zf.cli import main

sys.exit(main())
