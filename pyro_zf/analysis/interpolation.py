"""Interpolation between the latent paths of two sequences (Goyal et al. 2017, section 4.2, table 3)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_zf.analysis.decoding import Decoding, mean_of
from pyro_zf.analysis.generation import posterior_path
from pyro_zf.batch import SequenceBatch
from pyro_zf.models import SequenceModel

__all__ = ["argmax_and_sampling", "interpolate"]


def argmax_and_sampling(temperature: float = 1.0) -> dict[str, Decoding]:
    """The two decodings of the paper's table: modes, and samples at the given temperature.

    Raises:
        ValueError: if the temperature is not above 0.
    """
    return {
        "argmax": Decoding(argmax=True, latent_temperature=0.0),
        "sampling": Decoding(temperature),
    }


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

    The latents of both sequences are inferred by the posterior at each step. Each interpolated path is
    decoded by the model, which reads its own previous values. After the end of one of the sequences, the
    mean of the prior at that step takes the place of its latent.

    Args:
        model: the model.
        pair: two sequences.
        weights: interpolation weights a, from 0 for the first sequence to 1 for the second.
        decoding: how values are decoded, such as ``Decoding(argmax=True)``. By default they are sampled.
        num_steps: number of steps to decode. By default, the length of the longer sequence.
        at_mean: whether to use the posterior's means instead of samples.

    Raises:
        ValueError: if there are not exactly two sequences, or if the model has no latents.

    Example:
        >>> from pyro_zf import VRNN
        >>> vrnn = VRNN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> pair = SequenceBatch.from_targets(torch.rand(2, 5, 4).round())
        >>> interpolate(vrnn, pair, torch.linspace(0, 1, 3), Decoding(argmax=True)).shape
        torch.Size([3, 5, 4])
    """
    if pair.num_sequences != 2:
        raise ValueError(f"interpolation needs 2 sequences, not {pair.num_sequences}")
    if not hasattr(model, "latent_size"):
        raise ValueError(f"{type(model).__name__} has no latents to interpolate")
    steps = num_steps or pair.num_steps
    mixing = _Mixed(posterior_path(model, pair, at_mean), pair, weights.to(pair.inputs.device))
    first = pair.inputs[:1, 0].expand(len(weights), *pair.inputs.shape[2:])
    covariates = pair.covariates
    if covariates is not None:  # interpolate the covariates too
        a = weights.to(covariates).reshape(-1, *(1,) * (covariates.dim() - 1))
        covariates = (1 - a) * covariates[:1] + a * covariates[1:]
    return model.generate(first, steps, decoding or Decoding(), mixing, covariates=covariates)


class _Mixed(Messenger):
    """Sets each latent to a point on the line between two paths."""

    def __init__(self, paths: Tensor, pair: SequenceBatch, weights: Tensor) -> None:
        super().__init__()
        self.paths = paths
        self.lengths = [pair.num_steps] * 2 if pair.lengths is None else pair.lengths.tolist()
        self.weights = weights.to(paths.dtype).unsqueeze(-1)

    def _pyro_sample(self, msg: Any) -> None:
        name, _, step = msg["name"].rpartition("_")
        if name != "z" or (t := int(step) - 1) >= max(self.lengths):
            return  # after the end of both sequences, z comes from the prior
        ends = [
            self.paths[i, t] if t < n else mean_of(msg["fn"]) for i, n in enumerate(self.lengths)
        ]
        msg["value"] = (1 - self.weights) * ends[0] + self.weights * ends[1]
