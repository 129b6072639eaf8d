"""Which parts the fused recurrence knows, and their weights as it wants them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_zf.cores.stages import Activation, activation_of
from pyro_zf.cores.step import Layout, Weights
from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.lstm import ChainTransition, LSTMTransition, Transition
from pyro_zf.nn.mlp import MLP
from pyro_zf.nn.posteriors import FilteringPosterior, ResidualPosterior, SmoothingPosterior
from pyro_zf.nn.priors import GaussianPrior

__all__ = ["StandardParts", "standard_parts"]


class Hidden(NamedTuple):
    """A Gaussian network with one hidden layer."""

    first: nn.Linear
    activation: Activation
    second: nn.Linear
    form: GaussianForm


def _plain(*modules: nn.Module) -> bool:
    """Whether nothing happens in their forwards but what their classes say: no hooks, and biases."""
    return not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in modules
    ) and all(m.bias is not None for m in modules if isinstance(m, nn.Linear))


def one_hidden_layer(head: nn.Module) -> Hidden | None:
    """The parts of a Gaussian head, if it has one hidden layer of a known kind."""
    network = getattr(head, "network", None)
    form: Any = getattr(head, "form", None)
    if type(network) is not MLP or len(network) != 3 or type(form) is not GaussianForm:
        return None
    first, middle, second = network
    activation = activation_of(middle)
    if activation is None or type(first) is not nn.Linear or type(second) is not nn.Linear:
        return None
    if not _plain(head, network, first, middle, second):
        return None
    return Hidden(first, activation, second, form)


class StandardParts(NamedTuple):
    """The parts of a step that the fused recurrence computes.

    ``prior`` is that whose mean a residual posterior corrects. ``embedding`` is a layer between z and
    the transition, with its activation or with None.
    """

    transition: LSTMTransition | ChainTransition
    posterior: Hidden
    prior: Hidden | None
    embedding: tuple[nn.Linear, Activation | None] | None
    echo: Hidden | None

    def layout(self, low: torch.dtype | None, kept: bool) -> Layout:
        """What a step consists of."""
        embedding = self.embedding[1] if self.embedding is not None else None
        echo = self.echo
        return Layout(
            self.posterior.activation,
            self.posterior.form,
            embedding,
            None if echo is None else echo.activation,
            None if echo is None else echo.form,
            low,
            kept,
        )

    def context(self, context: Tensor, inputs: Tensor) -> Tensor:
        """What the posterior's hidden layer reads beside the state."""
        size = self.transition.posterior_reads
        first = self.posterior.first
        projected = F.linear(context, first.weight[:, size:], first.bias)
        if self.prior is None:
            return projected
        # res_q is one network: its hidden layer is that of the correction and that of the prior.
        first = self.prior.first
        rest = self.transition.seen_size - size
        if rest:
            of_prior = F.linear(inputs, first.weight[:, size:], first.bias)
        else:
            assert first.bias is not None
            of_prior = first.bias
        shape = torch.broadcast_shapes(projected.shape[:-1], of_prior.shape[:-1])
        parts = (projected, of_prior)
        return torch.cat([x.expand(*shape, -1) for x in parts], dim=-1)

    def gates(self, inputs: Tensor) -> Tensor:
        """What the gates read beside state and latents, in the order o, i, f, g."""
        assert isinstance(self.transition, LSTMTransition)
        weight, _, bias_input, bias_recurrent = self.transition.weights
        bias = _ordered(bias_input + bias_recurrent)
        latent_bias = self._folded()[1]
        if latent_bias is not None:
            bias = bias + latent_bias
        return F.linear(inputs, _ordered(weight[:, : self.transition.input_size]), bias)

    def weights(self) -> Weights:
        """Weights of a step. Made by differentiable operations from the parameters."""
        size = self.transition.posterior_reads
        hidden = [self.posterior.first.weight[:, :size]]
        moments: Tensor = self.posterior.second.weight
        bias: Tensor = self.posterior.second.bias
        if self.prior is not None:
            hidden.append(self.prior.first.weight[:, :size])
            half = len(moments) // 2
            mean, mean_bias = self.prior.second.weight[:half], self.prior.second.bias[:half]
            moments = torch.cat([moments, F.pad(mean, (0, 0, 0, half))], dim=1)
            bias = bias + F.pad(mean_bias, (0, half))
        embedding = embedding_bias = latent = echo = None
        if self.embedding is not None and self.embedding[1] is not None:
            embedding, embedding_bias = self.embedding[0].weight, self.embedding[0].bias
        if isinstance(self.transition, LSTMTransition):
            hidden.append(_ordered(self.transition.weights[1]))
            latent, _, echo = self._folded()
        network = self.echo
        return Weights(
            torch.cat(hidden), moments, bias, latent, embedding, embedding_bias, echo,
            *(
                (network.first.weight, network.first.bias, network.second.weight, network.second.bias)
                if network is not None
                else ()
            ),
        )  # fmt: skip

    def _folded(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Of the gates: the weight of z or of its embedding, a bias that comes with it, that of b~."""
        assert isinstance(self.transition, LSTMTransition)
        weight = _ordered(self.transition.weights[0][:, self.transition.input_size :])
        echo = None
        if self.echo is not None:
            size = self.echo.second.out_features // 2
            weight, echo = weight[:, :-size], weight[:, -size:]
        if self.embedding is None or self.embedding[1] is not None:
            return weight, None, echo
        # Two linear layers in a row are one.
        layer = self.embedding[0]
        bias = None if layer.bias is None else weight @ layer.bias
        return weight @ layer.weight, bias, echo


def _ordered(gates: Tensor) -> Tensor:
    """Gates i, f, g, o in the order o, i, f, g."""
    i_f_g, o = gates.split([gates.shape[0] // 4 * 3, gates.shape[0] // 4])
    return torch.cat([o, i_f_g])


def standard_parts(
    transition: Transition,
    latent_layer: nn.Module | None,
    posterior: nn.Module,
    echo: Any,
) -> StandardParts | str:
    """The parts that the fused recurrence computes, or in a few words why it cannot.

    Args:
        transition: the forward recurrence.
        latent_layer: the layer between z and the transition; None for one that is not known.
        posterior: the posterior.
        echo: maps z to the distribution of b~ where the transition reads one, or None.
    """
    if type(transition) not in (LSTMTransition, ChainTransition):
        return f"the transition is a {type(transition).__name__}"
    chain = isinstance(transition, ChainTransition)
    prior = None
    if type(posterior) is ResidualPosterior:
        prior = one_hidden_layer(posterior.prior)
        if type(posterior.prior) is not GaussianPrior or prior is None:
            return f"res_q corrects a {type(posterior.prior).__name__} of another form"
    elif type(posterior) not in (SmoothingPosterior, FilteringPosterior):
        return f"the posterior is a {type(posterior).__name__}"
    assert isinstance(posterior, SmoothingPosterior)
    network = one_hidden_layer(posterior)
    if network is None:
        return (
            "the posterior has another number of hidden layers than one, another activation, no biases, or "
            "hooks"
        )
    if posterior.hidden_size != transition.posterior_reads:
        return "the posterior reads a part of the state"
    if prior is not None and (
        prior.activation != network.activation
        or any((f.clamp, f.mean) != (None, "identity") for f in (prior.form, network.form))
    ):
        return "the prior that res_q corrects has another activation or form"
    embedding: tuple[nn.Linear, Activation | None] | None = None
    if latent_layer is None:
        return "what the transition reads of z is made in a way of its own"
    if isinstance(latent_layer, nn.Sequential) and len(latent_layer) == 2:
        linear, activation = latent_layer[0], activation_of(latent_layer[1])
        if type(linear) is not nn.Linear or activation is None:
            return "the layer between z and the transition has an activation that is not known"
        embedding = (linear, activation)
    elif type(latent_layer) is nn.Linear:
        embedding = (latent_layer, Activation("identity") if chain else None)
    elif type(latent_layer) is not nn.Identity:
        return f"the layer between z and the transition is a {type(latent_layer).__name__}"
    if not _plain(latent_layer, *latent_layer.children()):
        return "the layer between z and the transition has no bias, or hooks"
    if echo is None:
        return StandardParts(transition, network, prior, embedding, None)  # type: ignore[arg-type]
    of_echo = one_hidden_layer(echo) if type(echo) is GaussianHead else None
    if of_echo is None or chain:
        return "b~ has a network of another form"
    return StandardParts(transition, network, prior, embedding, of_echo)  # type: ignore[arg-type]
