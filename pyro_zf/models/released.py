"""Conversion of weights of the authors' released class (Goyal et al. 2017) to those of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_zf.nn.recurrent import BackwardLSTM

__all__ = ["convert_released"]

#: Layers that have the same form in both classes; maps the released name to the name in this package.
_SAME_LAYERS = {
    "pri_mod.0": "prior.network.0",
    "pri_mod.2": "prior.network.2",
    "inf_mod.0": "posterior.network.0",
    "inf_mod.2": "posterior.network.2",
    "gen_mod": "latent_embedding",
    "aux_mod.0": "aux.b.head.network.0",
    "aux_mod.2": "aux.b.head.network.2",
}


def convert_released(
    weights: Mapping[str, Any], z_force: bool
) -> tuple[dict[str, Any], BackwardLSTM, dict[str, Tensor]]:
    """Convert weights to the options, the backward network and the ``state_dict`` of a model.

    See :meth:`pyro_zf.models.ZForcing.from_released_state_dict`.
    """
    if "state_dict" in weights:
        z_force = bool(weights.get("z_force", z_force))
        weights = weights["state_dict"]
    if any(name.startswith("fwd_mod.ln_") for name in weights):
        raise ValueError(
            "these weights were trained with conditional layer normalisation (cond_ln), "
            "which this package does not have"
        )
    expected = {"emb_mod.0.weight", "fwd_mod.weight_ih", "fwd_mod.weight_hh", "bwd_out_mod.weight"}
    missing = sorted(expected - set(weights))
    if missing:
        raise ValueError(f"these are not weights of the released class: {missing[0]} is missing")

    gaussian = "emb_mod.0.bias" in weights
    hidden_size = weights["fwd_mod.weight_hh"].shape[0]
    mlp_size, latent_size = weights["gen_mod.weight"].shape
    embedding = weights["emb_mod.0.weight"]
    embedding_size, data_size = embedding.shape if gaussian else reversed(embedding.shape)
    out_size = weights["fwd_out_mod.weight"].shape[0]
    if out_size != (2 * data_size if gaussian else data_size):
        raise ValueError(
            f"the released weights read steps of {data_size} values but their output layer has "
            f"{out_size} units; only a model that predicts what it reads can be loaded"
        )
    num_layers = sum(name.startswith("bwd_mod.weight_hh_l") for name in weights)
    options = {
        "data_size": data_size,
        "emission": "gaussian" if gaussian else "categorical",
        "hidden_size": hidden_size,
        "latent_size": latent_size,
        "mlp_size": mlp_size,
        "embedding_size": embedding_size,
        "aux_condition": "z" if z_force else "zh",
        "variant": "released-code",
    }
    backward = BackwardLSTM(embedding_size, hidden_size, num_layers=num_layers)

    ours: dict[str, Tensor] = {}
    for name, our_name in _SAME_LAYERS.items():
        for kind in ("weight", "bias"):
            ours[f"{our_name}.{kind}"] = weights[f"{name}.{kind}"]
    if z_force:  # the released network multiplies h by zero; here it does not read h
        key = "aux.b.head.network.0.weight"
        ours[key] = ours[key][:, hidden_size:]
    head = "network.0"
    for kind in ("weight", "bias"):
        ours[f"emission.{head}.{kind}"] = weights[f"fwd_out_mod.{kind}"]
        ours[f"aux.u.emission.{head}.{kind}"] = weights[f"bwd_out_mod.{kind}"]
    for name, value in weights.items():
        if name.startswith("bwd_mod."):
            ours["backward_network.lstm." + name.removeprefix("bwd_mod.")] = value
        elif name.startswith("emb_mod.0."):
            ours["embedding." + name.removeprefix("emb_mod.0.")] = value
    # The released cell multiplies from the left and reads the latent first; the cell here reads it last.
    input_weight = weights["fwd_mod.weight_ih"].T
    ours["cell.lstm.weight_ih_l0"] = torch.cat(
        [input_weight[:, mlp_size:], input_weight[:, :mlp_size]], dim=1
    )
    ours["cell.lstm.weight_hh_l0"] = weights["fwd_mod.weight_hh"].T
    ours["cell.lstm.bias_ih_l0"] = weights["fwd_mod.bias_ih"]
    ours["cell.lstm.bias_hh_l0"] = weights["fwd_mod.bias_hh"]
    return options, backward, ours
