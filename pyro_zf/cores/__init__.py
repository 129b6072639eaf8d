"""The recurrence in which states and latents depend on each other step by step."""

from pyro_zf.cores.eager import Path, sample_path

__all__ = ["Path", "sample_path"]
