"""Objectives, the SVI engine, schedules, and bounds for evaluation."""

from pyro_zf.infer.bounds import BatchBounds, Bounds, Estimate, batch_bounds, evaluate
from pyro_zf.infer.carried import CarriedState
from pyro_zf.infer.corruption import InputDropout, WordDropout
from pyro_zf.infer.fivo import FilterResult, TraceFIVO, particle_filter
from pyro_zf.infer.graphs import GraphedSVI
from pyro_zf.infer.objectives import Trace_ELBO, TraceIWAE, TraceMeanField_ELBO
from pyro_zf.infer.registry import OBJECTIVES
from pyro_zf.infer.schedules import LinearSchedule
from pyro_zf.infer.svi import SVI

__all__ = [
    "OBJECTIVES",
    "SVI",
    "BatchBounds",
    "Bounds",
    "CarriedState",
    "Estimate",
    "FilterResult",
    "GraphedSVI",
    "InputDropout",
    "LinearSchedule",
    "TraceFIVO",
    "TraceIWAE",
    "TraceMeanField_ELBO",
    "Trace_ELBO",
    "WordDropout",
    "batch_bounds",
    "evaluate",
    "particle_filter",
]
