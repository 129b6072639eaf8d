"""Gradients test the inputs of each distribution in each system: the table of docs/models.md.

The layouts share the wiring of a system, so their agreement does not test it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_zf import SequenceBatch
from tests.families import LATENT, Combination

T, t = 5, 3  # t is the tested step, counted from 1

#: Inputs of prior, posterior and emission of step t by family: "u", "y" or "z" with an offset.
PAST_Z = {"z-2", "z-1"}
PAST_U = {"u-2", "u-1"}
FUTURE_Y = {"y+0", "y+1", "y+2"}
READS: dict[tuple[str, str], tuple[set[str], set[str], set[str]]] = {
    ("storn", "recognition"): (
        PAST_U | PAST_Z, {"y-2", "y-1", "y+0"}, PAST_U | PAST_Z | {"u+0", "z+0"}
    ),
    ("vrnn", "filtering"): (
        PAST_U | PAST_Z | {"u+0"}, PAST_U | PAST_Z | {"u+0", "y+0"},
        PAST_U | PAST_Z | {"u+0", "z+0"},
    ),
    # a_t reads d_t, .., d_T and therefore all inputs; z_{t-1} is the only latent that is read.
    ("srnn", "smoothing"): (
        PAST_U | {"u+0", "z-1"}, PAST_U | FUTURE_Y | {"u+0", "u+1", "u+2", "z-1"},
        PAST_U | {"u+0", "z+0"},
    ),
    ("zforcing", "smoothing"): (
        PAST_U | PAST_Z, PAST_U | PAST_Z | FUTURE_Y, PAST_U | PAST_Z | {"u+0", "z+0"}
    ),
    # b_t reads u_t, y_t, .., y_T; the inputs after u_1 are the targets, so u_t is y_{t-1} here.
    ("variational-bilstm", "smoothing"): (
        PAST_U | PAST_Z | {"b-2", "b-1"}, PAST_U | PAST_Z | {"b-2", "b-1", "y-1"} | FUTURE_Y,
        PAST_U | PAST_Z | {"b-2", "b-1", "u+0", "z+0", "b+0"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("family", "posterior"), READS)
def test_inputs_of_each_distribution(family: str, posterior: str) -> None:
    model = Combination(family, "gaussian", posterior, "gaussian").build(layout="steps").eval()
    u, y, z, b = (
        [torch.randn(1, n, requires_grad=True) for _ in range(T)] for n in (3, 3, LATENT, 5)
    )
    batch = SequenceBatch(torch.stack(u, 1), torch.stack(y, 1))
    latents = {f"z_{i + 1}": value for i, value in enumerate(z)}
    if family == "variational-bilstm":
        latents |= {f"b_tilde_{i + 1}": value for i, value in enumerate(b)}
    sources = {
        f"{name}{i + 1 - t:+d}": value
        for name, values in (("u", u), ("y", y), ("z", z), ("b", b))
        for i, value in enumerate(values)
    }

    def read_by(distribution: Any) -> set[str]:
        total = sum((x * torch.randn_like(x)).sum() for x in moments(distribution))
        gradients = torch.autograd.grad(
            total, list(sources.values()), retain_graph=True, allow_unused=True
        )
        return {
            name
            for name, gradient in zip(sources, gradients, strict=True)
            if gradient is not None and gradient.abs().max() > 0
        }

    guide = poutine.trace(poutine.condition(model.guide, data=latents)).get_trace(batch)
    program = poutine.trace(poutine.condition(model.model, data=latents)).get_trace(batch)
    found = (
        read_by(program.nodes[f"z_{t}"]["fn"]),
        read_by(guide.nodes[f"z_{t}"]["fn"]),
        read_by(program.nodes[f"y_{t}"]["fn"]),
    )
    for what, ours, expected in zip(
        ("prior", "posterior", "emission"), found, READS[family, posterior], strict=True
    ):
        assert ours == expected, what


def moments(distribution: Any) -> tuple[Tensor, Tensor]:
    base = distribution.base_dist
    return base.loc, base.scale
