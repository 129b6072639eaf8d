"""Combinations of systems, priors, posteriors and emissions that cover every pair of parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pyro_zf import SequenceBatch
from pyro_zf.models import MODELS, SequenceModel
from pyro_zf.nn import EMISSIONS, POSTERIORS, PRIORS

DATA, LATENT, MAX_COUNT = 3, 3, 6
SIZES: dict[str, Any] = {"hidden_size": 5, "mlp_size": 4}
AUX: dict[str, dict[str, Any]] = {
    "zforcing": {"alpha": 0.3, "beta": 0.7},
    "srnn": {"aux": {"b": 0.3, "u": 0.7}},
    "variational-bilstm": {"alpha": 0.3, "beta": 0.4, "gamma": 0.2, "aux": {"u": 0.7}},
}


class Combination(NamedTuple):
    """Names of the parts of a model."""

    family: str
    prior: str
    posterior: str
    emission: str

    def build(self, **options: Any) -> SequenceModel:
        shape = {**SIZES, "emission": self.emission, "max_count": MAX_COUNT, **options}
        if self.family == "rnn":
            return MODELS["rnn"](DATA, **shape)
        aux = AUX.get(self.family, {"aux": {"b": 0.3, "u": 0.7, "h": 0.2, "activity": 0.1}})
        shape = {**aux, "latent_size": LATENT, **shape}
        return MODELS[self.family](DATA, prior=self.prior, posterior=self.posterior, **shape)

    def batch(
        self, lengths: list[int] | None = None, num_sequences: int = 3, num_steps: int = 4
    ) -> SequenceBatch:
        size = (num_sequences, num_steps)
        if self.emission == "categorical":
            targets = torch.randint(DATA, size)
        elif self.emission.endswith("bernoulli") or self.emission == "logistic-mixture":
            targets = (torch.rand(*size, DATA) > 0.5).double()
        elif self.emission in ("poisson", "negative-binomial", "beta-binomial"):
            targets = torch.poisson(torch.full((*size, DATA), 2.0)).clamp(max=MAX_COUNT)
        else:
            targets = torch.randn(*size, DATA)
        return SequenceBatch.from_targets(
            targets, None if lengths is None else torch.tensor(lengths)
        )


def makes_sense(family: str, prior: str, posterior: str) -> bool:
    if (prior, posterior) == ("flow", "res_q"):  # the mean of a flow is not known
        return False
    # The posterior that ignores the state belongs to STORN.
    return posterior != "recognition" or family == "storn"


LATENT_FAMILIES = [name for name in MODELS if name not in ("rnn", "vrnn-i")]


def covering() -> list[Combination]:
    """A small set of combinations that covers every pair of compatible parts."""
    every = [
        Combination(family, prior, posterior, emission)
        for family in LATENT_FAMILIES
        for prior in PRIORS
        for posterior in POSTERIORS
        if makes_sense(family, prior, posterior)
        for emission in EMISSIONS
    ]

    def pairs(combination: Combination) -> set[tuple[int, str, int, str]]:
        parts = list(enumerate(combination))
        return {(i, a, j, b) for i, a in parts for j, b in parts if i < j}

    missing = set().union(*map(pairs, every))
    chosen: list[Combination] = []
    while missing:
        best = max(every, key=lambda c: len(pairs(c) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


COMBINATIONS = covering() + [Combination("rnn", "", "", emission) for emission in EMISSIONS]
