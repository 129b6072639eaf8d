"""Objectives, the SVI engine, schedules, and bounds for evaluation."""

from pyro_zf.infer.bounds import BatchBounds, Bounds, Estimate, batch_bounds, evaluate
from pyro_zf.infer.objectives import OBJECTIVES, Trace_ELBO, TraceIWAE, TraceMeanField_ELBO
from pyro_zf.infer.schedules import LinearSchedule
from pyro_zf.infer.svi import SVI

__all__ = [
    "OBJECTIVES",
    "SVI",
    "BatchBounds",
    "Bounds",
    "Estimate",
    "LinearSchedule",
    "TraceIWAE",
    "TraceMeanField_ELBO",
    "Trace_ELBO",
    "batch_bounds",
    "evaluate",
]
