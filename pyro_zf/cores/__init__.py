"""The recurrence in which states and latents depend on each other step by step."""

from pyro_zf.cores.path import Path, lagged, shielded
from pyro_zf.cores.select import CORES, Core, recurrence_in_use, sample_path

__all__ = ["CORES", "Core", "Path", "lagged", "recurrence_in_use", "sample_path", "shielded"]
