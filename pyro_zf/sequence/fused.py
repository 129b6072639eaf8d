r"""The recurrence of the standard systems, with a hand-written backward pass.

A step computes, for the rows (particles and sequences) of a batch:

.. math::

    [p_t, g_t] &\mathrel{+}= W_h h_{t-1}     && \text{posterior's hidden layer, and the LSTM's gates} \\
    m_t &= W_m\, \mathrm{act}(p_t) + b_m, \qquad [\mu_t, \log \sigma_t] = \mathrm{form}(m_t) \\
    z_t &= \mu_t + \sigma_t \epsilon_t \\
    g_t &\mathrel{+}= W_z\, \mathrm{embed}(z_t) + W_b \tilde b_t, \qquad
    \tilde b_t = \mathcal N(\mathrm{MLP}(z_t)) \text{ by its own noise} \\
    c_t, h_t &= \mathrm{LSTM}(g_t, c_{t-1})

where :math:`p_t` and :math:`g_t` are initialised with the terms that do not depend on the recurrence, and
only some systems have :math:`\mathrm{embed}` and :math:`\tilde b`. For a chain of latents (SRNN), the state
is :math:`h_t = \mathrm{embed}(z_t)`, without gates. The backward pass runs through the same steps in reverse.
The derivatives of elementwise functions are computed for many steps at a time, and the gradient of a weight
is computed by one product for the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pyro_zf.batch import with_particles
from pyro_zf.distributions.noise import standard_normal
from pyro_zf.nn.cells import LatentChain, LSTMCell, ReadsPreviousLatent, Trajectory
from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.mlp import ELEMENTWISE, MLP
from pyro_zf.nn.posteriors import FilteringPosterior, ResidualPosterior, SmoothingPosterior
from pyro_zf.nn.priors import GaussianPrior
from pyro_zf.sequence.products import Product
from pyro_zf.sequence.system import RecurrentSystem, detach_where, join_over_time

if TYPE_CHECKING:
    from pyro_zf.sequence.recurrence import Recurrence

__all__ = ["FusedPlan", "draw_noise", "fused_plan", "plan_in_use", "recurrence_in_use"]

aten: Any = torch.ops.aten
#: Bytes of the preactivations whose derivatives are computed at a time, on a CPU and on other devices.
PIECE = {"cpu": 2**24}
OTHER_PIECE = 2**28


def draw_noise(
    num_steps: int, shape: torch.Size, sizes: tuple[int, ...], like: Tensor
) -> list[Tensor]:
    """Draw standard normal noise for some latents of all steps, one tensor for each latent, time first.

    On a CPU, the noise is drawn step by step, in the order in which a program with one site per step draws
    it, so the same seed gives the same path in both layouts. On a GPU, it is drawn at once.
    """
    if like.device.type != "cpu":
        return [standard_normal((num_steps, *shape, size), like) for size in sizes]
    noise = [like.new_empty(num_steps, *shape, size) for size in sizes]
    for of_step in zip(*(x.unbind(0) for x in noise), strict=True):
        for x in of_step:
            x.copy_(standard_normal(x.shape, like))
    return noise


# Supported systems


class _Head(NamedTuple):
    """A Gaussian network with one hidden layer."""

    first: nn.Linear
    activation: nn.Module
    second: nn.Linear
    form: GaussianForm


def _head(module: Any) -> _Head | None:
    """The parts of a Gaussian network with one hidden layer; None for any other module."""
    network, form = getattr(module, "network", None), getattr(module, "form", None)
    if type(network) is not MLP or len(network) != 3 or type(form) is not GaussianForm:
        return None
    first, activation, second = network
    if not (isinstance(first, nn.Linear) and isinstance(second, nn.Linear)):
        return None
    if type(activation) not in ELEMENTWISE or not _plain(module, network, *network):
        return None
    return _Head(first, activation, second, form)


def _plain(*modules: nn.Module) -> bool:
    """Whether modules behave as their classes define: they have no hooks, and linear layers have a bias."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any(getattr(m, name) for m in modules for name in hooks) and all(
        type(m) is nn.Linear and m.bias is not None for m in modules if isinstance(m, nn.Linear)
    )


class FusedPlan(NamedTuple):
    """The parts of a system that the fused recurrence computes.

    Args:
        posterior: the posterior of z.
        prior: the prior whose mean a residual posterior corrects, if there is one.
        lstm: the weights of the cell, or None for a chain of latents.
        previous: whether the cell reads the latent of the previous step.
        embedding: the layer between z and the cell, if there is one, and its activation, if it has one.
        free: name and network of a latent that follows z and is free of KL, if there is one.
        free_is_read: whether the cell reads that latent.
    """

    posterior: _Head
    prior: _Head | None
    lstm: nn.LSTM | None
    previous: bool
    embedding: tuple[nn.Linear, nn.Module | None] | None
    free: tuple[str, _Head] | None
    free_is_read: bool

    def draw(
        self, run: Recurrence, shape: torch.Size
    ) -> tuple[dict[str, Tensor], Trajectory, dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Draw the latents; return them, the states along them, their moments and their noise, time first."""
        system, posterior = run.system, self.posterior
        device, like = run.u.device.type, posterior.second.weight
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        size = posterior.second.out_features // 2
        names, sizes = ["z"], [size]
        if self.free is not None:
            names.append(self.free[0])
            sizes.append(self.free[1].second.out_features // 2)
        noise = dict(zip(names, draw_noise(len(run.u), shape, tuple(sizes), like), strict=True))
        context = self._context(run, shape)
        with torch.autocast(device, enabled=False):
            weights = self._weights(system.cell.state_sizes[0])
        state = system.cell.initial(shape, run.cell_start)
        u = with_particles(run.cell_u, len(shape) + 2 - run.cell_u.dim())
        if self.previous:  # the first transition is made here; the last one is unused
            assert isinstance(system.cell, ReadsPreviousLatent)
            state = system.cell.before(u[0].expand(*shape, -1), state)
            u = torch.cat([u[1:], torch.zeros_like(u[:1])])
        gates = self._gates(u).expand(-1, *shape, -1) if self.lstm is not None else None
        steps = _Steps(
            posterior.activation, posterior.form,
            self.embedding[1] if self.embedding is not None else None,
            self.free[1].activation if self.free_is_read and self.free is not None else None,
            self.free[1].form if self.free_is_read and self.free is not None else None,
            low, self.previous, torch.is_grad_enabled(),
        )  # fmt: skip
        keep = None if run.gradient_mask is None else (~run.gradient_mask).to(like.dtype)
        if keep is not None:
            keep = keep.expand(len(run.u), *shape, 1).flatten(1, -2)
        with torch.autocast(device, enabled=False):  # `low` is the precision of the products
            c, h, z, m, *free = _Recurrence.apply(
                steps, keep, noise["z"], noise[names[-1]] if self.free_is_read else None, context,
                gates, state[0], state[1] if self.lstm is not None else None, *weights,
            )  # fmt: skip
        moments = {"z": posterior.form.split(m)}
        latents = {"z": z}
        if self.free is not None:
            name, head = self.free
            if self.free_is_read:
                latents[name], moments[name] = free[0], head.form.split(free[1])
            else:
                mean, log_scale = head.form.split(_apply_head(head, join_over_time(z, run.c)))
                moments[name] = (mean, log_scale)
                latents[name] = mean + torch.exp(log_scale) * noise[name]
        before, after = h[:-1], h[1:]
        if self.previous:
            read = system.cell_inputs({name: x[-1] for name, x in latents.items()})
            trajectory = Trajectory(before, before, (before[-1], c, read))
        elif self.lstm is None:
            trajectory = Trajectory(before, after, (after[-1],))
        else:
            trajectory = Trajectory(before, after, (after[-1], c))
        return latents, trajectory, moments, {"z": noise["z"]}

    def _context(self, run: Recurrence, shape: torch.Size) -> Tensor:
        """The part of the posterior's hidden layer that does not depend on the state, including the bias."""
        system, mask = run.system, run.gradient_mask
        state_size = system.cell.state_sizes[0]
        particles = len(shape) - 1

        def seen(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            x = with_particles(x, particles + 3 - x.dim())
            return x if mask is None else detach_where(mask, x.expand(-1, *shape, -1))

        u = seen(run.u) if "input" in system.latents["z"].reads else None
        c = None if run.c is None else with_particles(run.c, particles + 3 - run.c.dim())
        others = None if u is None and c is None else join_over_time(u, c)
        context = seen(run.context)
        assert context is not None
        parts = []
        for head, size in ((self.posterior, _features_read(system)), (self.prior, None)):
            if head is None:
                continue
            weight = head.first.weight[:, state_size:]
            if size is not None:  # the features that it reads, then the context
                width = size - state_size
                part = F.linear(context, weight[:, width:], head.first.bias)
            else:
                width, part = weight.shape[1], head.first.bias
            if width and others is not None:
                part = part + F.linear(others[..., :width], weight[:, :width])
            parts.append(part)
        rows = (len(run.u), *shape)
        parts = [x.expand(*rows, -1) for x in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _gates(self, u: Tensor) -> Tensor:
        """The part of the gates (o, i, f, g) that depends on neither state nor latents."""
        assert self.lstm is not None
        weight, _, bias_input, bias_hidden = self.lstm.all_weights[0]
        bias = bias_input + bias_hidden
        if (folded := self._folded()) is not None:
            bias = bias + weight[:, u.shape[-1] :][:, : folded.out_features] @ folded.bias
        return F.linear(u, _ordered(weight[:, : u.shape[-1]]), _ordered(bias))

    def _folded(self) -> nn.Linear | None:
        """The linear layer between z and the gates, if the two linear maps can be merged into one."""
        if self.lstm is None or self.embedding is None or self.embedding[1] is not None:
            return None
        return self.embedding[0]

    def _weights(self, state_size: int) -> _Weights:
        """The weights of a step, computed from the parameters by differentiable operations."""
        hidden = [self.posterior.first.weight[:, :state_size]]
        moments: Tensor = self.posterior.second.weight
        bias: Tensor = self.posterior.second.bias
        if self.prior is not None:  # one network, whose mean includes that of the prior
            hidden.append(self.prior.first.weight[:, :state_size])
            half = len(moments) // 2
            mean, mean_bias = self.prior.second.weight[:half], self.prior.second.bias[:half]
            moments = torch.cat([moments, F.pad(mean, (0, 0, 0, half))], dim=1)
            bias = bias + F.pad(mean_bias, (0, half))
        embedding: Tensor | None = None
        embedding_bias: Tensor | None = None
        latent: Tensor | None = None
        free: Tensor | None = None
        of_free: tuple[Tensor, ...] = ()
        if self.embedding is not None and self._folded() is None:
            embedding, embedding_bias = self.embedding[0].weight, self.embedding[0].bias
        if self.lstm is not None:
            weight: Tensor = self.lstm.all_weights[0][0]
            recurrent = self.lstm.all_weights[0][1]
            hidden.append(_ordered(recurrent))
            if self.free_is_read and self.free is not None:
                head = self.free[1]
                of_free = (head.first.weight, head.first.bias, head.second.weight, head.second.bias)
                width = head.second.out_features // 2
                weight, free = weight[:, :-width], _ordered(weight[:, -width:])
            folded = self._folded()
            size = len(self.posterior.second.bias) // 2
            if self.embedding is not None:
                size = self.embedding[0].out_features
            latent = _ordered(weight[:, -size:])
            if folded is not None:
                latent = latent @ folded.weight
        return _Weights(
            torch.cat(hidden), moments, bias, latent, embedding, embedding_bias, free, *of_free
        )


def _features_read(system: RecurrentSystem) -> int:
    """Number of leading features that the posterior of z reads."""
    size: Any = system.posterior.hidden_size
    return int(size)


def _apply_head(head: _Head, x: Tensor) -> Tensor:
    return head.second(head.activation(head.first(x))).to(x.dtype)


def _ordered(gates: Tensor) -> Tensor:
    """Reorder the gates i, f, g, o to o, i, f, g."""
    i_f_g, o = gates.split([gates.shape[0] // 4 * 3, gates.shape[0] // 4])
    return torch.cat([o, i_f_g])


def fused_plan(system: RecurrentSystem) -> FusedPlan | str:
    """The plan for a system, or the reason why the fused recurrence does not support it."""
    (name, z), *others = system.latents.items()
    cell = system.cell
    previous = type(cell) is ReadsPreviousLatent
    inner = cell.cell if isinstance(cell, ReadsPreviousLatent) else cell
    if type(inner) not in (LSTMCell, LatentChain) or getattr(inner, "num_layers", 1) != 1:
        return f"the cell is a {type(inner).__name__} of {getattr(inner, 'num_layers', 1)} layers"
    lstm: Any = inner.rnn if isinstance(inner, LSTMCell) else None
    if name != "z" or z.per != "step" or z.reads not in (("state",), ("state", "input")):
        return "the first latent of a step is not z"
    posterior, prior = z.posterior, None
    if type(posterior) is ResidualPosterior:
        prior = _head(posterior.prior)
        if type(posterior.prior) is not GaussianPrior or prior is None:
            return f"res_q corrects a {type(posterior.prior).__name__} of another form"
    elif type(posterior) not in (SmoothingPosterior, FilteringPosterior):
        return f"the posterior is a {type(posterior).__name__}"
    head = _head(posterior)
    if head is None:
        return (
            "the posterior has another number of hidden layers than one, another activation, no "
            "biases, or hooks"
        )
    if _features_read(system) < cell.state_sizes[0]:
        return "the posterior reads a part of the state"
    if prior is not None and (
        repr(prior.activation) != repr(head.activation)
        or any((f.clamp, f.mean) != (None, "identity") for f in (prior.form, head.form))
    ):
        return "the prior that res_q corrects has another activation or form"
    layer = system.latent_embedding
    embedding: tuple[nn.Linear, nn.Module | None] | None = None
    if not _plain(layer, *layer.children()):
        return "the layer between z and the cell has no bias, or hooks"
    if type(layer) is nn.Linear:
        embedding = (layer, None if lstm is not None else nn.Identity())
    elif type(layer) is nn.Sequential and len(layer) == 2 and type(layer[0]) is nn.Linear:
        if type(layer[1]) not in ELEMENTWISE:
            return "the layer between z and the cell has an activation that is not known"
        embedding = (layer[0], layer[1])
    elif type(layer) is not nn.Identity:
        return f"the layer between z and the cell is a {type(layer).__name__}"
    free, read = None, False
    if others:
        (free_name, latent), *more = others
        of_free = _head(latent.prior)
        read = free_name in system.cell_reads
        known = latent.posterior is None and latent.reads == ("z",) and latent.per == "step"
        if more or not known or of_free is None or type(latent.prior) is not GaussianHead:
            return f"the latent {free_name} is of another form"
        if read and (lstm is None or previous or system.condition_size):
            return f"the latent {free_name} is read in another way"
        free = (free_name, of_free)
    if system.cell_reads != ("z", *([free[0]] if free and read else [])):
        return "the cell reads the latents in another order"
    return FusedPlan(head, prior, lstm, previous, embedding, free, read)


def plan_in_use(system: RecurrentSystem) -> FusedPlan | str:
    """The plan of the fused recurrence if it draws the paths; otherwise a description of how they are drawn.

    Raises:
        ValueError: if ``core="fused"`` and the fused recurrence does not support the system, or if a chain of
            latents is traced by ``torch.jit``.
    """
    if system.core == "eager":
        return "eager"
    plan = fused_plan(system)
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        if isinstance(system.cell, LatentChain):
            raise ValueError(
                "torch.jit computes wrong gradients for a chain of latents in layout 'time': take layout "
                "'steps' for its objectives"
            )
        plan = "its hand-written backward cannot be traced by torch.jit"
    if not isinstance(plan, str):
        return plan
    if system.core == "fused":
        raise ValueError(f"core='fused' does not support this model: {plan}; take core='auto'")
    return f"eager, since {plan}"


def recurrence_in_use(system: Any) -> str:
    """A short description of how the paths of a system are drawn.

    Raises:
        ValueError: if ``core="fused"`` and the fused recurrence does not support the system.
    """
    latents = [x for x in system.latents.values() if x.per == "step"]
    if getattr(latents[0].posterior, "ignores_state", False) and len(latents) == 1:
        return "all steps at once"
    plan = plan_in_use(system)
    return plan if isinstance(plan, str) else "fused"


# The recurrence


class _Weights(NamedTuple):
    """Weights of a step, (out, in).

    ``hidden`` is applied to the state; its rows are those of the posterior's hidden layer, followed by those
    of the gates (o, i, f, g). ``moments`` is the posterior's second layer. ``latent`` maps z, or its
    embedding, to the gates, and ``free`` maps the latent that follows z to them.
    """

    hidden: Tensor
    moments: Tensor
    moments_bias: Tensor
    latent: Tensor | None = None
    embedding: Tensor | None = None
    embedding_bias: Tensor | None = None
    free: Tensor | None = None
    free_hidden: Tensor | None = None
    free_hidden_bias: Tensor | None = None
    free_moments: Tensor | None = None
    free_moments_bias: Tensor | None = None


class _Steps(NamedTuple):
    """The functions of a step. ``low`` is the precision of products, or None."""

    activation: nn.Module
    form: GaussianForm
    embedding: nn.Module | None
    free_activation: nn.Module | None
    free_form: GaussianForm | None
    low: torch.dtype | None
    previous: bool
    kept: bool


def _with_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """An elementwise function of x, and its derivative."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return y.detach(), slope


class _Draw:
    r"""A hidden layer, a Gaussian and a draw from it: :math:`z = \mu(x) + \sigma(x) \epsilon`.

    Args:
        activation, form: activation of the hidden layer, and parametrisation of the Gaussian.
        weight, bias: parameters of the second layer.
        noise: :math:`\epsilon` of all steps, (time, \*rows, size).
        low: the precision of products.
    """

    def __init__(
        self, activation: nn.Module, form: GaussianForm, weight: Tensor, bias: Tensor, noise: Tensor,
        low: torch.dtype | None,
    ) -> None:  # fmt: skip
        self.activation, self.form, self.bias = activation, form, bias
        self.product = Product(weight, low)
        self.noise = noise.flatten(1, -2)
        self.value = torch.empty_like(noise)
        self.moments = noise.new_empty(*noise.shape[:-1], 2 * noise.shape[-1])
        steps = (self.value, self.moments, noise)
        self._value, self._moments, self._noise = (x.flatten(1, -2).unbind(0) for x in steps)

    def forward(self, t: int, x: Tensor) -> Tensor:
        """Draw the value of step t, given the preactivations of the hidden layer."""
        self.product.affine(self.activation(x), self.bias, self._moments[t])
        mean, log_scale = self.form.split(self._moments[t])
        return torch.addcmul(mean, torch.exp(log_scale), self._noise[t], out=self._value[t])

    def start(self, g_value: Tensor | None, g_moments: Tensor | None) -> list[Tensor]:
        """Start the backward pass from the gradients of the outputs. Return the gradients of the draws."""
        rows = self.noise.shape
        total = torch.zeros_like(self.noise) if g_value is None else g_value.reshape(rows).clone()
        self.given = None if g_moments is None else g_moments.reshape(*rows[:-1], 2, rows[-1])
        self.g_weight: Any = 0.0
        self.g_bias: Any = 0.0
        self.g_value = list(total.unbind(0))
        return self.g_value

    def prepare(self, first: int, last: int, x: Tensor) -> None:
        """Compute the derivatives of steps first..last-1, whose hidden layer has the preactivations x."""
        self.first, self.last = first, last
        self.a, slope = _with_slope(self.activation, x)
        moments = self.moments.flatten(1, -2)[first:last]
        _, by_mean = _with_slope(lambda m: self.form.split(m)[0], moments)
        log_scale, by_log_scale = _with_slope(lambda m: self.form.split(m)[1], moments)
        factor = (by_mean + by_log_scale).unflatten(-1, (2, -1))
        factor[..., 1, :] *= torch.exp(log_scale).mul_(self.noise[first:last])
        self.g = factor  # overwritten with the gradients of the moments
        self._steps = list(zip(factor.unbind(0), slope.unbind(0), strict=True))
        self._room = torch.empty_like(slope[0])

    def backward(self, t: int, out: Tensor) -> None:
        """Compute the gradient of the preactivations of the hidden layer from that of the draw."""
        g, slope = self._steps[t - self.first]
        g.mul_(self.g_value[t].unsqueeze(1))
        if self.given is not None:
            g.add_(self.given[t])
        torch.mul(slope, self.product.back(g.flatten(1), self._room), out=out)

    def accumulate(self) -> None:
        """Add the gradients of weight and bias from the steps that were prepared last."""
        g = self.g.flatten(-2)
        self.g_weight = self.g_weight + self.product.gradient(g, self.a)
        self.g_bias = self.g_bias + g.sum((0, 1))


class _Loop:
    """The steps of a batch: their parts, and memory for the values that the backward pass needs.

    ``weights`` are :class:`_Weights`, and ``keep`` is 0 where the posterior passes no gradient to the state.
    """

    def __init__(
        self, steps: _Steps, keep: Tensor | None, weights: _Weights, width: int, h: Tensor,
        c: Tensor | None, noise: Tensor, free_noise: Tensor | None,
    ) -> None:  # fmt: skip
        self.steps, self.keep, self.w, self.width = steps, keep, weights, width
        self.length, self.size, w = len(noise), h.shape[-1], weights
        products: list[Any] = [
            Product(x, steps.low) if x is not None and x.dim() == 2 else x for x in w
        ]
        self.products: Any = _Weights(*products)
        self.draw = _Draw(steps.activation, steps.form, w.moments, w.moments_bias, noise, steps.low)
        self.free: _Draw | None = None
        if free_noise is not None:
            assert steps.free_activation is not None and steps.free_form is not None
            assert w.free_moments is not None and w.free_moments_bias is not None
            self.free = _Draw(
                steps.free_activation, steps.free_form, w.free_moments, w.free_moments_bias,
                free_noise, steps.low,
            )  # fmt: skip
        self.states = h.new_empty(self.length + 1, *h.shape)
        self.h = self.states.flatten(1, -2).unbind(0)
        self.h[0].copy_(h.flatten(0, -2))
        self.cells = [] if c is None else [c.flatten(0, -2)]
        # Preactivations of the layer between z and the cell, and of the hidden layer of the latent after z.
        self.features: list[Tensor] = []
        self.free_inputs: list[Tensor] = []

    def forward(self, context: Tensor, gates: Tensor | None) -> None:
        """Run all steps, given the parts of the preactivations that do not depend on the recurrence."""
        steps, w, p = self.steps, self.w, self.products
        parts = [context] if gates is None else [context, gates]
        full = self.states.dtype  # the parts may have lower precision
        if steps.kept:  # one tensor, which the backward pass overwrites with gradients
            sizes = [x.shape[-1] for x in parts]
            pre = self.states.new_empty(self.length, *self.states.shape[1:-1], sum(sizes))
            for part, x in zip(pre.split(sizes, -1), parts, strict=True):
                part.copy_(x)
            self.pre = pre.flatten(1, -2)
            at_steps: Any = self._at_steps(self.pre)
        else:
            rows = zip(*(x.to(full).unbind(0) for x in parts), strict=True)
            joined = (torch.cat(row, dim=-1).flatten(0, -2).unsqueeze(0) for row in rows)
            at_steps = (step for row in joined for step in self._at_steps(row))
        for t, (pre_t, hidden, values, squashed, o, i, f, g) in enumerate(at_steps):
            p.hidden.add(self.h[t], pre_t)
            z = read = self.draw.forward(t, hidden)
            if steps.embedding is not None:
                self.features.append(p.embedding.affine(z, w.embedding_bias))
                read = steps.embedding(self.features[-1])
            if values is None:
                self.h[t + 1].copy_(read)
            else:
                p.latent.add(read, values)
                if self.free is not None:
                    self.free_inputs.append(p.free_hidden.affine(z, w.free_hidden_bias))
                    p.free.add(self.free.forward(t, self.free_inputs[-1]), values)
                squashed.sigmoid_()  # the gates overwrite their preactivations
                self.cells.append(torch.mul(i, g.tanh_()).addcmul_(f, self.cells[-1]))
                torch.mul(o, torch.tanh(self.cells[-1]), out=self.h[t + 1])
            if not steps.kept:
                self.features, self.free_inputs = [], []
                self.cells = self.cells[-2:]

    def _at_steps(self, pre: Tensor) -> Iterator[tuple[Any, ...]]:
        """Views of the preactivations of each step: all, hidden layer, gates, gates o to f, and each gate."""
        views = [pre, pre[..., : self.width]]
        if self.cells:
            gates = pre[..., self.width :]
            views += [gates, gates[..., : 3 * self.size], *gates.split(self.size, -1)]
        lists: list[Any] = [x.unbind(0) for x in views]
        lists += [[None] * len(pre)] * (8 - len(lists))
        return zip(*lists, strict=True)

    def backward(
        self,
        g_states: Tensor | None,
        g_z: Tensor | None,
        g_moments: Tensor | None,
        g_free: Tensor | None = None,
        g_free_moments: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """The gradients of context, gates, h, c and the weights."""
        steps, p, width, free = self.steps, self.products, self.width, self.free
        lstm, shape = bool(self.cells), self.states.shape[1:-1]
        g_h_all = torch.zeros_like(self.states) if g_states is None else g_states.clone()
        g_h, g_z_at = g_h_all.flatten(1, -2).unbind(0), self.draw.start(g_z, g_moments)
        if free is not None:
            free.start(g_free, g_free_moments)
        g: dict[str, Any] = dict.fromkeys(_Weights._fields)

        def accumulate(name: str, gradient: Tensor) -> None:
            g[name] = gradient if g[name] is None else g[name].add_(gradient)

        g_c = torch.zeros_like(self.cells[0]) if lstm else None
        keep = None if self.keep is None else self.keep.unbind(0)
        for first, last in self._pieces():
            pre, h, z = (
                self.pre[first:last],
                self.states[first:last].flatten(1, -2),
                self._z(first, last),
            )
            hidden, gates = pre[..., :width], pre[..., width:]
            self.draw.prepare(first, last, hidden)
            if lstm:
                to_cell, forget = self._prepare_cells(first, last, gates)
                inner = gates[..., self.size :].unflatten(-1, (3, self.size)).unbind(0)
                outer = gates[..., : self.size].unbind(0)
            if steps.embedding is not None:
                read, g_features = _with_slope(
                    steps.embedding, torch.stack(self.features[first:last])
                )
                room = torch.empty_like(read[0])
            if free is not None:
                free.prepare(first, last, torch.stack(self.free_inputs[first:last]))
                g_free_inputs = torch.empty(len(pre), *self.free_inputs[0].shape).to(pre)
            at_steps = zip(hidden.unbind(0), gates.unbind(0), pre.unbind(0), strict=True)
            for k, (hidden_t, gates_t, pre_t) in reversed(list(enumerate(at_steps))):
                t = first + k
                if lstm:
                    assert g_c is not None
                    g_c.addcmul_(g_h[t + 1], to_cell[k])
                    inner[k].mul_(g_c.unsqueeze(1))
                    outer[k].mul_(g_h[t + 1])
                    g_c.mul_(forget[k])
                if steps.embedding is not None:
                    g_read = p.latent.back(gates_t, room) if lstm else g_h[t + 1]
                    p.embedding.add_back(g_features[k].mul_(g_read), g_z_at[t])
                elif lstm:
                    p.latent.add_back(gates_t, g_z_at[t])
                else:
                    g_z_at[t].add_(g_h[t + 1])
                if free is not None:
                    p.free.add_back(gates_t, free.g_value[t])
                    free.backward(t, g_free_inputs[k])
                    p.free_hidden.add_back(g_free_inputs[k], g_z_at[t])
                self.draw.backward(t, hidden_t)
                if keep is not None:
                    pre_t = pre_t.clone()
                    pre_t[:, :width].mul_(keep[t])
                p.hidden.add_back(pre_t, g_h[t])
            self.draw.accumulate()
            accumulate("hidden", p.hidden.gradient(pre, h))
            if steps.embedding is not None:
                accumulate("embedding", p.embedding.gradient(g_features, z))
                accumulate("embedding_bias", g_features.sum((0, 1)))
            if lstm:
                accumulate(
                    "latent", p.latent.gradient(gates, z if steps.embedding is None else read)
                )
            if free is not None:
                free.accumulate()
                accumulate("free", p.free.gradient(gates, free.value.flatten(1, -2)[first:last]))
                accumulate("free_hidden", p.free_hidden.gradient(g_free_inputs, z))
                accumulate("free_hidden_bias", g_free_inputs.sum((0, 1)))
        g["moments"], g["moments_bias"] = self.draw.g_weight, self.draw.g_bias
        if free is not None:
            g["free_moments"], g["free_moments_bias"] = free.g_weight, free.g_bias
        g_pre = self.pre.unflatten(1, shape)
        return (
            g_pre[..., :width],
            g_pre[..., width:] if lstm else None,
            g_h_all[0],
            g_c.unflatten(0, shape) if g_c is not None else None,
            *g.values(),
        )

    def _z(self, first: int, last: int) -> Tensor:
        return self.draw.value.flatten(1, -2)[first:last]

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """First and last step of each piece of the backward pass, the last piece first."""
        size = self.pre[0].numel() * self.pre.element_size()
        length = max(PIECE.get(self.pre.device.type, OTHER_PIECE) // max(size, 1), 1)
        for last in range(self.length, 0, -length):
            yield max(last - length, 0), last

    def _prepare_cells(self, first: int, last: int, gates: Tensor) -> tuple[Any, Any]:
        """Compute the factors of the LSTM's backward pass; derivatives overwrite the gates o, i, f, g."""
        o, i, f, g = gates.split(self.size, -1)
        cells = torch.stack(self.cells[first : last + 1])
        tanh, forget = torch.tanh(cells[1:]), f.clone()
        to_cell = aten.tanh_backward(o, tanh)
        aten.sigmoid_backward.grad_input(tanh, o, grad_input=o)
        aten.sigmoid_backward.grad_input(cells[:-1], f, grad_input=f)
        to_input = aten.sigmoid_backward(g, i)
        aten.tanh_backward.grad_input(i, g, grad_input=g)
        i.copy_(to_input)
        return to_cell.unbind(0), forget.unbind(0)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        steps: _Steps,
        keep: Tensor | None,
        noise: Tensor,
        free_noise: Tensor | None,
        context: Tensor,
        gates: Tensor | None,
        h: Tensor,
        c: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        weights = _Weights(*tensors)
        loop = _Loop(steps, keep, weights, context.shape[-1], h, c, noise, free_noise)
        loop.forward(context, gates)
        # Return new tensor objects, so that the kept values do not refer to the outputs.
        outputs = [x.detach() for x in (loop.states, loop.draw.value, loop.draw.moments)]
        if loop.free is not None:
            outputs += [loop.free.value.detach(), loop.free.moments.detach()]
        end = h.new_zeros(0)
        if c is not None:  # if the cell reads the previous latent, its last transition is unused
            end = loop.cells[-2 if steps.previous else -1].clone().unflatten(0, h.shape[:-1])
        ctx.mark_non_differentiable(end)
        if steps.kept:
            ctx.set_materialize_grads(False)
            # Save these, so that changing them in place raises an error in the backward pass.
            ctx.save_for_backward(*outputs, *(x for x in weights if x is not None))
            ctx.loop = loop
        return (end, *outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Any, *gradients: Any) -> tuple[Any, ...]:
        _ = ctx.saved_tensors
        loop, ctx.loop = ctx.loop, None
        if loop is None:
            raise RuntimeError(
                "the fused recurrence writes over what it keeps, so that its graph can be "
                "differentiated once; take core='eager' for retain_graph=True"
            )
        with torch.autocast(loop.pre.device.type, enabled=False):
            return (None, None, None, None, *loop.backward(*gradients))
