"""What must be set before anything is imported, notebooks and doctests included."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("NOTEBOOK_STEPS", "20")
