r"""A step of the fused recurrence: what its parts are, and what LSTM and chain have in common.

Each step is a dozen kernels forward and ten backward; see :mod:`pyro_zf.cores.stages` for what they
are. Inputs are projected before the loop, the state meets all its weights in one product a step, and
the gradients of weights are one product each after the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_zf.cores.products import Product
from pyro_zf.cores.stages import Activation, Buffers, GaussianDraw
from pyro_zf.nn.gaussian import GaussianForm

__all__ = ["Layout", "Steps", "Weights", "differentiated", "given_out"]

#: Bytes of the gates that a piece of the backward prepares at a time, on a CPU and elsewhere.
PIECE = {"cpu": 2**24}
OTHER_PIECE = 2**28


class Layout(NamedTuple):
    """What a step consists of, beside numbers.

    Args:
        activation: of the posterior's hidden layer.
        form: of its output.
        embedding: activation of a layer between z and the state, or None for no such layer.
        echo_activation, echo_form: of the network of b~ that the transition reads, or None.
        low: precision of the operands of products, or None for that of the numbers.
        kept: whether there will be a backward.
    """

    activation: Activation
    form: GaussianForm
    embedding: Activation | None
    echo_activation: Activation | None
    echo_form: GaussianForm | None
    low: torch.dtype | None
    kept: bool


class Weights(NamedTuple):
    """Weights of a step, (out, in).

    ``hidden`` is that of the state: of the posterior's hidden layer, then of the gates (o, i, f, g).
    ``moments`` is the posterior's second layer. ``latent`` leads from z, or from its embedding, to
    the gates (LSTM) or is None (chain); ``echo`` from b~ to the gates.
    """

    hidden: Tensor
    moments: Tensor
    moments_bias: Tensor
    latent: Tensor | None = None
    embedding: Tensor | None = None
    embedding_bias: Tensor | None = None
    echo: Tensor | None = None
    echo_hidden: Tensor | None = None
    echo_hidden_bias: Tensor | None = None
    echo_moments: Tensor | None = None
    echo_moments_bias: Tensor | None = None


class Steps:
    """What LSTM and chain have in common: the posterior at each step, and an embedding of its draws."""

    def __init__(
        self, layout: Layout, noise: Tensor, state: Tensor, width: int, weights: Weights
    ) -> None:
        self.layout, self.weights = layout, weights
        self.steps, self.shape = len(noise), state.shape[:-1]
        rows = state.numel() // state.shape[-1]
        self.buffers = Buffers(state, rows, layout.kept)
        # The inputs of the posterior's hidden layer, and of the gates where there are any.
        self.pre, self.pre_at = self.buffers.steps(self.steps, width)
        split = weights.moments.shape[1]
        self.first, self.rest = self.pre[..., :split], self.pre[..., split:]
        self.first_at = self.buffers.over(self.first, self.steps)
        self.hidden = state.new_empty(self.steps + 1, rows, state.shape[-1])
        self.hidden[0].copy_(state.reshape(rows, -1))
        self.hidden_at = list(self.hidden.unbind(0))
        self.by_hidden = Product(weights.hidden, layout.low)
        self.draw = GaussianDraw(
            self.buffers, layout.activation, layout.form, weights.moments, weights.moments_bias,
            noise.flatten(1, -2), layout.low,
        )  # fmt: skip
        self.features: Tensor | None = None
        #: What a backward writes over.
        self.spoilt = [self.pre]
        if layout.embedding is not None:
            assert weights.embedding is not None and weights.embedding_bias is not None
            self.embed = Product(weights.embedding, layout.low)
            size = weights.embedding.shape[0]
            self.features, self._features = self.buffers.steps(self.steps, size)
            self.spoilt.append(self.features)

    def embedding_of(self, t: int, z: Tensor, out: Tensor) -> Tensor:
        """The embedding of the latent of step t."""
        assert self.layout.embedding is not None and self.weights.embedding_bias is not None
        self.embed.affine(z, self.weights.embedding_bias, self._features[t])
        return self.layout.embedding.apply(self._features[t], out)

    def keep_for_backward(
        self, ctx: Any, parts: tuple[Any, ...], keep: Tensor | None, weights: tuple[Any, ...]
    ) -> None:
        """Keep the parts, and what tells that nobody has changed what came in and what was given out."""
        ctx.parts = parts
        ctx.save_for_backward(*(x for x in weights if x is not None))
        ctx.keep = None if keep is None else keep.flatten(1, -2)
        ctx.shape = self.shape
        ctx.versions = self.versions()
        ctx.set_materialize_grads(False)

    def versions(self) -> tuple[int, ...]:
        """Of what is given out, counted up by changes in place."""
        return tuple(x._version for x in (self.hidden, self.draw.moments, self.draw.value))

    def start_backward(
        self,
        g_before: Tensor | None,
        g_after: Tensor | None,
        g_value: Tensor | None,
        g_mean: Tensor | None,
        g_log_scale: Tensor | None,
    ) -> None:
        """Before the first step of the backward: the gradients of what was given out."""
        rows = self.hidden.shape[1]
        given = (g_before, g_after, g_value, g_mean, g_log_scale)
        before, after, value, mean, log_scale = (
            None if g is None else g.reshape(self.steps, rows, g.shape[-1]) for g in given
        )
        #: Of the states, to which each step adds.
        self.g_hidden = _of_all_states(before, after, self.hidden)
        self.g_hidden_at = self.g_hidden.unbind(0)
        #: Of the draws, likewise.
        total = torch.zeros_like(self.draw.value) if value is None else value.clone()
        self.g_value_at = total.unbind(0)
        self.draw.start_backward(mean, log_scale)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """First and last step of the pieces of the backward, the last piece first."""
        size = self.pre[0].numel() * self.pre.element_size()
        length = max(PIECE.get(self.pre.device.type, OTHER_PIECE) // max(size, 1), 1)
        for last in range(self.steps, 0, -length):
            yield max(last - length, 0), last

    def back_through_embedding(self, t: int, g: Tensor, g_z: Tensor) -> Tensor:
        """Add to the gradient of z what comes from that of its embedding."""
        if self.layout.embedding is None:
            return g_z.add_(g)
        features = self._features[t].mul_(g)
        return self.embed.add_back(features, g_z)

    def embedding_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Of weight and bias."""
        if self.layout.embedding is None:
            return None, None
        assert self.features is not None
        return self.embed.gradient(self.features, self.draw.value), self.features.sum((0, 1))


def _of_all_states(before: Tensor | None, after: Tensor | None, like: Tensor) -> Tensor:
    """The gradient of all states, from those of the states before the steps and of those after them."""
    total = torch.zeros_like(like)
    if before is not None:
        total[:-1] = before
    if after is not None:
        total[1:] += after
    return total


def given_out(x: Tensor, batch_shape: torch.Size) -> Tensor:
    """With all dimensions of a batch; no view, which could not be changed in place."""
    return x.unflatten(1, batch_shape).detach()


def differentiated(
    ctx: Any, backward: Callable[..., tuple[Any, ...]], gradients: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Run a backward on what the forward kept, a part of which it writes over."""
    if ctx.parts is None:
        raise RuntimeError(
            "this path was differentiated before: pass retain_graph=True to do it more than once"
        )
    parts, s = ctx.parts, ctx.parts[0]
    _ = ctx.saved_tensors  # raises if a weight was changed in place
    if ctx.versions != s.versions():
        raise RuntimeError(
            "a latent path or the states along it were changed in place, and their gradient needs them"
        )
    # PyTorch's own word for whether this graph may be differentiated again.
    again = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
    spoilt = s.spoilt
    before = [x.clone() for x in spoilt] if again else []
    ctx.parts = None
    with torch.autocast(s.pre.device.type, enabled=False):
        result = backward(ctx, parts, *gradients)
    if again:
        result = tuple(None if x is None else x.clone() for x in result)
        for x, values in zip(spoilt, before, strict=True):
            x.copy_(values)
        ctx.parts = parts
    return result
