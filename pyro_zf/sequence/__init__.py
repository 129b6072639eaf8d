"""Parts that the systems share: latents, the recurrence, and distributions over paths."""

from pyro_zf.sequence.fused import recurrence_in_use
from pyro_zf.sequence.paths import (
    LatentPath,
    PosteriorPath,
    PriorPath,
    kl_per_step,
    with_carried_states,
)
from pyro_zf.sequence.recurrence import DrawnPath, Recurrence
from pyro_zf.sequence.system import (
    FREE_OF_KL,
    Core,
    Latent,
    RecurrentSystem,
    detach_where,
    join_over_time,
)
from pyro_zf.sequence.unroll import at_steps, unroll

__all__ = [
    "FREE_OF_KL",
    "Core",
    "DrawnPath",
    "Latent",
    "LatentPath",
    "PosteriorPath",
    "PriorPath",
    "Recurrence",
    "RecurrentSystem",
    "at_steps",
    "detach_where",
    "join_over_time",
    "kl_per_step",
    "recurrence_in_use",
    "unroll",
    "with_carried_states",
]
