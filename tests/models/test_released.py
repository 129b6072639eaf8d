"""Weights of the authors' released class give the same numbers as that class.

The oracle is implemented here from the description of that class: one cell whose weights multiply from
the left, latent features before input features, Gaussian parameters of prior, posterior and auxiliary
network clamped at 8, log-variances, a tanh mean of the auxiliary network, one linear layer for each
output, and a backward network that shares the input layer.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_zf import SequenceBatch, ZForcing
from pyro_zf.infer import Trace_ELBO, TraceMeanField_ELBO, batch_bounds

X, E, H, Z, M = 3, 5, 6, 2, 4


def random_weights(gaussian: bool = True, layers: int = 1) -> dict[str, Tensor]:
    out = 2 * X if gaussian else X
    shapes = {
        "emb_mod.0.weight": (E, X) if gaussian else (X, E),
        "fwd_mod.weight_ih": (E + M, 4 * H), "fwd_mod.weight_hh": (H, 4 * H),
        "fwd_mod.bias_ih": (4 * H,), "fwd_mod.bias_hh": (4 * H,),
        "pri_mod.0.weight": (M, H), "pri_mod.0.bias": (M,),
        "pri_mod.2.weight": (2 * Z, M), "pri_mod.2.bias": (2 * Z,),
        "inf_mod.0.weight": (M, 2 * H), "inf_mod.0.bias": (M,),
        "inf_mod.2.weight": (2 * Z, M), "inf_mod.2.bias": (2 * Z,),
        "gen_mod.weight": (M, Z), "gen_mod.bias": (M,),
        "aux_mod.0.weight": (M, Z + H), "aux_mod.0.bias": (M,),
        "aux_mod.2.weight": (2 * H, M), "aux_mod.2.bias": (2 * H,),
        "fwd_out_mod.weight": (out, H), "fwd_out_mod.bias": (out,),
        "bwd_out_mod.weight": (out, H), "bwd_out_mod.bias": (out,),
    }  # fmt: skip
    if gaussian:
        shapes["emb_mod.0.bias"] = (E,)
    for layer in range(layers):
        shapes[f"bwd_mod.weight_ih_l{layer}"] = (4 * H, H if layer else E)
        shapes[f"bwd_mod.weight_hh_l{layer}"] = (4 * H, H)
        shapes[f"bwd_mod.bias_ih_l{layer}"] = (4 * H,)
        shapes[f"bwd_mod.bias_hh_l{layer}"] = (4 * H,)
    weights = {name: 0.7 * torch.randn(shape) for name, shape in shapes.items()}
    weights["pri_mod.2.bias"][0] = 9.5  # above the clamp
    return weights


def released_terms(
    w: dict[str, Tensor], x: Tensor, y: Tensor, noise: Tensor, z_force: bool, layers: int = 1
) -> dict[str, Tensor]:
    """Terms per sequence for time-major x and y; ``noise`` has shape (time, batch, latent)."""

    def layer(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def network(name: str, value: Tensor) -> Tensor:
        hidden = F.leaky_relu(layer(f"{name}.0", value), 1 / 3).clip(-3, 3)
        return layer(f"{name}.2", hidden).clip(-8, 8)

    def gaussian(value: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        density = -0.5 * (math.log(2 * math.pi) + log_var + (value - mean) ** 2 / log_var.exp())
        return density.sum(-1)

    symbols = not x.is_floating_point()

    def embed(value: Tensor) -> Tensor:
        return w["emb_mod.0.weight"][value] if symbols else layer("emb_mod.0", value)

    def emit(name: str, state: Tensor, value: Tensor) -> Tensor:
        out = layer(name, state)
        if symbols:
            return torch.log_softmax(out, -1).gather(-1, value.unsqueeze(-1)).squeeze(-1)
        return gaussian(value, *out.chunk(2, -1))

    backward = torch.nn.LSTM(E, H, layers)
    backward.load_state_dict(
        {k.removeprefix("bwd_mod."): v for k, v in w.items() if k.startswith("bwd_mod.")}
    )
    b = backward(embed(y.flip(0)))[0].flip(0)
    h = c = torch.zeros(x.shape[1], H)
    sums: dict[str, Tensor] = {
        k: torch.zeros(x.shape[1]) for k in ("y", "u", "aux", "kl", "pz", "qz")
    }
    for t in range(len(x)):
        p_mean, p_var = network("pri_mod", h).chunk(2, -1)
        q_mean, q_var = network("inf_mod", torch.cat([h, b[t]], -1)).chunk(2, -1)
        z = q_mean + (q_var / 2).exp() * noise[t]
        seen = torch.zeros_like(h) if z_force else h
        a_mean, a_var = network("aux_mod", torch.cat([seen, z], -1)).chunk(2, -1)
        sums["aux"] = sums["aux"] + gaussian(b[t], a_mean.tanh(), a_var)
        ratio = (q_var.exp() + (q_mean - p_mean) ** 2) / p_var.exp()
        sums["kl"] = sums["kl"] + 0.5 * (p_var - q_var + ratio - 1).sum(-1)
        sums["pz"] = sums["pz"] + gaussian(z, p_mean, p_var)
        sums["qz"] = sums["qz"] + gaussian(z, q_mean, q_var)
        features = torch.cat([layer("gen_mod", z), embed(x[t])], -1)
        gates = features @ w["fwd_mod.weight_ih"] + h @ w["fwd_mod.weight_hh"]
        i, f, g, o = (gates + w["fwd_mod.bias_ih"] + w["fwd_mod.bias_hh"]).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        sums["y"] = sums["y"] + emit("fwd_out_mod", h, y[t])
        sums["u"] = sums["u"] + emit("bwd_out_mod", b[t], x[t])
    return {k: v.detach() for k, v in sums.items()}


@pytest.mark.parametrize("layout", ["steps", "time"])
@pytest.mark.parametrize("z_force", [False, True])
@pytest.mark.parametrize("gaussian", [True, False], ids=["gaussian", "softmax"])
@pytest.mark.parametrize("layers", [1, 2])
def test_same_numbers(layout: str, z_force: bool, gaussian: bool, layers: int) -> None:
    weights = random_weights(gaussian, layers)
    steps, size = 7, 4
    data = torch.randn(steps + 1, size, X) if gaussian else torch.randint(X, (steps + 1, size))
    x, y = data[:-1], data[1:]
    # In the released code x_1 is an observation, predicted in reverse like the others.
    batch = SequenceBatch(x.transpose(0, 1), y.transpose(0, 1), has_start_symbol=False)
    model = ZForcing.from_released_state_dict(
        weights, z_force=z_force, alpha=0.3, beta=0.7, layout=layout
    )
    torch.manual_seed(1)
    noise = torch.stack([torch.randn(size, Z) for _ in range(steps)])
    expected = released_terms(weights, x, y, noise, z_force, layers)

    torch.manual_seed(1)
    loss = model.loss_module(TraceMeanField_ELBO())(batch)
    total = expected["y"] - expected["kl"] + 0.3 * expected["aux"] + 0.7 * expected["u"]
    torch.testing.assert_close(loss.detach(), -total.mean(), rtol=1e-10, atol=0)

    torch.manual_seed(1)
    sampled = model.loss_module(Trace_ELBO())(batch)
    total = total + expected["kl"] + expected["pz"] - expected["qz"]
    torch.testing.assert_close(sampled.detach(), -total.mean(), rtol=1e-10, atol=0)

    torch.manual_seed(1)
    bounds = batch_bounds(model.model, model.guide, batch)
    torch.testing.assert_close(bounds.elbo, expected["y"] - expected["kl"], rtol=1e-10, atol=0)
    torch.testing.assert_close(bounds.kl, expected["kl"], rtol=1e-10, atol=0)


def test_the_dictionary_that_save_wrote() -> None:
    saved = {"z_force": True, "rnn_dim": H, "state_dict": random_weights()}
    assert ZForcing.from_released_state_dict(saved).aux["b"].condition == "z"


def test_what_cannot_be_loaded_is_named() -> None:
    with pytest.raises(ValueError, match="conditional layer normalisation"):
        ZForcing.from_released_state_dict({"fwd_mod.ln_ih.gain": torch.zeros(1)})
    weights = random_weights()
    with pytest.raises(ValueError, match=r"fwd_mod\.weight_hh is missing"):
        ZForcing.from_released_state_dict(
            {k: v for k, v in weights.items() if k != "fwd_mod.weight_hh"}
        )
    weights["fwd_out_mod.weight"] = torch.zeros(7, H)
    with pytest.raises(ValueError, match="output layer has 7 units"):
        ZForcing.from_released_state_dict(weights)
