"""Objectives by name."""

from __future__ import annotations

from collections.abc import Callable

from pyro.infer.elbo import ELBO

from pyro_zf.infer.fivo import TraceFIVO
from pyro_zf.infer.objectives import Trace_ELBO, TraceIWAE, TraceMeanField_ELBO

__all__ = ["OBJECTIVES"]

#: Objectives by name, as accepted by ``--objective``. Each is a function of the number of particles.
#: Add an entry to register your own.
OBJECTIVES: dict[str, Callable[..., ELBO]] = {
    "elbo": lambda k, **options: TraceMeanField_ELBO(
        k, max_plate_nesting=1, vectorize_particles=k > 1, **options
    ),
    "elbo-mc": lambda k: Trace_ELBO(k, max_plate_nesting=1, vectorize_particles=k > 1),
    "iwae": TraceIWAE,
    "fivo": TraceFIVO,
}
