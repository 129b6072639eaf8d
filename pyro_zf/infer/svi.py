"""SVI with one PyTorch optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.base import local_parameters

__all__ = ["SVI"]


class SVI(pyro.infer.SVI):
    """:class:`pyro.infer.SVI` with one PyTorch optimiser for all parameters.

    It clips gradients by their global norm, accumulates them over several batches, and never waits for
    the device: :meth:`step` returns a tensor. Losses are averages over the sequences of a batch.

    Args:
        model, guide: Pyro programs that take a :class:`~pyro_zf.batch.SequenceBatch`.
        optim: a PyTorch optimiser over the parameters of both.
        loss: any Pyro ELBO. One without ``differentiable_loss`` (:class:`pyro.infer.RenyiELBO`)
            is used through its ``loss_and_grads``, which reads the loss from the device.
        clip_norm: maximum norm of the whole gradient, or None.
        loss_context: a context manager factory for the computation of the loss, for example
            ``functools.partial(torch.autocast, "cuda", torch.bfloat16)``.

    Raises:
        TypeError: for an optimiser of :mod:`pyro.optim`, which creates one optimiser per parameter.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch, ZForcing
        >>> pyro.clear_param_store()
        >>> zf = ZForcing(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> optim = torch.optim.Adam(zf.parameters(), lr=1e-3)
        >>> svi = SVI(zf.model, zf.guide, optim, pyro.infer.Trace_ELBO(), clip_norm=10.0)
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> svi.step(batch).shape
        torch.Size([])
    """

    elbo: Any

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: torch.optim.Optimizer,
        loss: ELBO,
        clip_norm: float | None = None,
        loss_context: Callable[[], Any] | None = None,
    ) -> None:
        if not isinstance(optim, torch.optim.Optimizer):
            raise TypeError(
                f"{type(optim).__name__} is not a torch.optim.Optimizer; pyro.infer.SVI accepts those "
                "of pyro.optim"
            )
        # Do not call the constructor of pyro.infer.SVI: it accepts only optimisers of pyro.optim.
        self.model = model
        self.guide = guide
        self.optim = optim
        self.elbo = loss
        self.loss = self.elbo.loss
        self.clip_norm = clip_norm
        self.loss_context = loss_context

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that the optimiser trains."""
        return [p for group in self.optim.param_groups for p in group["params"]]

    def step(self, batch: SequenceBatch | Sequence[SequenceBatch]) -> Tensor:
        """Perform one update.

        Args:
            batch: one batch, or several whose gradients are accumulated; up to rounding, the update is
                the same as for one batch of all their sequences.

        Returns:
            Tensor: loss in nats per sequence, detached.
        """
        batches = [batch] if isinstance(batch, SequenceBatch) else list(batch)
        total = sum(b.num_real for b in batches)
        self.optim.zero_grad(set_to_none=True)
        loss = torch.stack([self._accumulate(b, total) for b in batches]).sum()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optim.step()
        return loss

    @torch.no_grad()
    def evaluate_loss(self, batch: SequenceBatch) -> Tensor:
        """Loss of a batch in nats per sequence."""
        return torch.as_tensor(self.loss(self.model, self.guide, batch)) / batch.num_real

    def _accumulate(self, batch: SequenceBatch, total: int | Tensor) -> Tensor:
        context = self.loss_context() if self.loss_context else nullcontext()
        if not hasattr(self.elbo, "differentiable_loss"):
            with context:
                return self._accumulate_by_loss_and_grads(batch, total)
        with context, local_parameters():
            loss = self.elbo.differentiable_loss(self.model, self.guide, batch) / total
        loss.backward()
        return loss.detach()

    def _accumulate_by_loss_and_grads(self, batch: SequenceBatch, total: int | Tensor) -> Tensor:
        # It adds the gradient of a sum over sequences, so existing gradients are brought to that scale.
        for p in self.parameters:
            if p.grad is not None:
                p.grad *= total
        loss = self.elbo.loss_and_grads(self.model, self.guide, batch)
        for p in self.parameters:
            if p.grad is not None:
                p.grad /= total
        return torch.as_tensor(loss) / total
