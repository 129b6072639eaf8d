"""Between two sequences in the path of their latents (Goyal et al. 2017, section 4.2, table 3)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_zf.analysis.decoding import Decoding, mean_of
from pyro_zf.analysis.generation import posterior_path
from pyro_zf.batch import SequenceBatch
from pyro_zf.models import SequenceModel
from pyro_zf.models.base import local_parameters

__all__ = ["interpolate"]


@torch.no_grad()
def interpolate(
    model: SequenceModel,
    pair: SequenceBatch,
    weights: Float[Tensor, " points"],
    decoding: Decoding | None = None,
    num_steps: int | None = None,
    at_mean: bool = True,
) -> Shaped[Tensor, "points time ..."]:
    r"""Decode :math:`(1 - a)\, z^{(1)}_{1:T} + a\, z^{(2)}_{1:T}` for each weight a.

    The latents of both sequences are inferred at each step by the posterior and put together to one
    code; each point between the codes goes through the decoder, which reads what it drew before. Where
    one sequence has ended, its part is taken by the mean of the prior at that step.

    Args:
        model: the model.
        pair: two sequences.
        weights: a, from 0 for the first to 1 for the second.
        decoding: how values are taken: ``Decoding(argmax=True)``, or by default a draw.
        num_steps: steps to decode; by default those of the longer sequence.
        at_mean: whether the codes are the posterior's means or draws from it.

    Raises:
        ValueError: if there are not two sequences, or the model has no latents.

    Example:
        >>> from pyro_zf import VRNN
        >>> vrnn = VRNN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> pair = SequenceBatch.from_targets(torch.rand(2, 5, 4).round())
        >>> interpolate(vrnn, pair, torch.linspace(0, 1, 3), Decoding(argmax=True)).shape
        torch.Size([3, 5, 4])
    """
    if pair.num_sequences != 2:
        raise ValueError(f"an interpolation is between 2 sequences, not {pair.num_sequences}")
    if not hasattr(model, "latent_size"):
        raise ValueError(f"{type(model).__name__} has no latents to interpolate")
    steps = num_steps or pair.num_steps
    mixing = _Mixed(posterior_path(model, pair, at_mean), pair, weights.to(pair.inputs.device))
    first = pair.inputs[:1, 0].expand(len(weights), *pair.inputs.shape[2:])
    start = SequenceBatch.to_generate(first, steps)
    with poutine.block(), local_parameters(), decoding or Decoding(), mixing:
        trace = poutine.trace(model.model).get_trace(start)
    ys: list[Any] = [trace.nodes[f"y_{t}"]["value"] for t in range(1, steps + 1)]
    return torch.stack(ys, dim=1)


class _Mixed(Messenger):
    """Sets each latent to a point between two paths."""

    def __init__(self, paths: Tensor, pair: SequenceBatch, weights: Tensor) -> None:
        super().__init__()
        self.paths, self.num_steps = paths, pair.num_steps
        self.alive = (
            pair.mask
            if pair.mask is not None
            else torch.ones(2, pair.num_steps, dtype=torch.bool, device=paths.device)
        )
        self.weights = weights.to(paths.dtype).unsqueeze(-1)

    def _pyro_sample(self, msg: Any) -> None:
        name, _, step = msg["name"].rpartition("_")
        t = int(step) - 1 if name == "z" else self.num_steps
        if t >= self.num_steps or not bool(self.alive[:, t].any()):
            return  # both have ended: the prior goes on
        prior = mean_of(msg["fn"])
        ends = [self.paths[i, t] if self.alive[i, t] else prior for i in range(2)]
        msg["value"] = (1 - self.weights) * ends[0] + self.weights * ends[1]
