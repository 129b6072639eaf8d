"""The recurrence in which states and latents depend on each other step by step."""

from pyro_zf.cores.eager import Path, lagged, sample_path, shielded

__all__ = ["Path", "lagged", "sample_path", "shielded"]
