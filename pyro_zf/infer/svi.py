"""SVI with one PyTorch optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
        gradient_context: a context manager factory for the computation of the gradients of an update: losses
            and backward passes, but neither clipping nor the optimiser.
        reduce: function that replaces a tensor by its sum over several processes, each of which has a
            part of the batch, such as :func:`torch.distributed.all_reduce`. None for a single process.
        skip_non_finite: whether to leave the parameters unchanged if the loss or the gradient is not finite;
            :attr:`skipped` counts such updates. On a GPU, the optimiser receives a gradient of zero instead.

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
        gradient_context: Callable[[], Any] | None = None,
        reduce: Callable[[Tensor], Any] | None = None,
        skip_non_finite: bool = False,
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
        self.gradient_context = gradient_context
        self.reduce = reduce
        self.skip_non_finite = skip_non_finite
        #: Numbers of skipped updates: in total, and in a row up to the last update.
        self.skipped, self.skipped_in_a_row = torch.zeros(2, dtype=torch.long).unbind()
        #: Numbers that are summed over the processes along with the gradients of the next update.
        self.along: Tensor = torch.zeros(0)
        self._flat: Tensor | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that the optimiser trains."""
        return [p for group in self.optim.param_groups for p in group["params"]]

    def step(
        self,
        batch: SequenceBatch | Sequence[SequenceBatch],
        contexts: Sequence[AbstractContextManager[Any]] | None = None,
    ) -> Tensor:
        """Perform one update.

        Args:
            batch: one batch, or several whose gradients are accumulated; up to rounding, the update is
                the same as for one batch of all their sequences.
            contexts: a context for the loss of each batch.

        Returns:
            Tensor: loss in nats per sequence, detached.
        """
        batches = [batch] if isinstance(batch, SequenceBatch) else list(batch)
        total = sum(b.num_real for b in batches)
        self.optim.zero_grad(set_to_none=True)
        with self.gradient_context() if self.gradient_context else nullcontext():
            if self.reduce is None:
                losses = [self._accumulate(b, total) for b in batches]
                loss = torch.stack(losses).sum()
            else:
                loss = self._reduced(batches, total, contexts or [nullcontext()] * len(batches))
        norm: Tensor | None = None
        if self.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        if not self.skip_non_finite or self._is_finite(loss, norm):
            self.optim.step()
        return loss

    @torch.no_grad()
    def _is_finite(self, loss: Tensor, norm: Tensor | None) -> bool:
        """Count an update that is not finite; on a GPU, set its gradient to zero without waiting for it."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if norm is None:
            norm = torch.nn.utils.get_total_norm(gradients)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.skipped = self.skipped.to(finite.device) + ~finite
        in_a_row = self.skipped_in_a_row.to(finite.device) + 1
        self.skipped_in_a_row = torch.where(finite, torch.zeros_like(in_a_row), in_a_row)
        if not finite.is_cuda:
            return bool(finite)
        for gradient in gradients:
            gradient.copy_(torch.where(finite, gradient, torch.zeros_like(gradient)))
        return True

    def _reduced(
        self,
        batches: Sequence[SequenceBatch],
        number: int | Tensor,
        contexts: Sequence[AbstractContextManager[Any]],
    ) -> Tensor:
        """Gradients and loss of all processes, divided by the total number of their sequences.

        One buffer holds the gradients, followed by the loss, the number of sequences and :attr:`along`.
        """
        parameters = self.parameters
        sizes = [p.numel() for p in parameters]
        length = sum(sizes) + 2 + len(self.along)
        if self._flat is None or len(self._flat) != length:
            self._flat = parameters[0].new_empty(length)
        flat = self._flat.zero_()
        gradients, loss, count, along = flat.split([sum(sizes), 1, 1, len(self.along)])
        for p, gradient in zip(parameters, gradients.split(sizes), strict=True):
            p.grad = gradient.view_as(p)
        for batch, context in zip(batches, contexts, strict=True):
            with context:
                loss += self._accumulate(batch, 1)
        count += number
        along += self.along.to(flat)
        assert self.reduce is not None
        self.reduce(flat)
        flat[: len(gradients) + 1] /= count.clamp(min=1)
        self.along = along.clone()
        return loss[0].clone()

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
        # `loss_and_grads` adds the gradient of a sum over sequences, so scale existing gradients to match.
        for p in self.parameters:
            if p.grad is not None:
                p.grad *= total
        loss = self.elbo.loss_and_grads(self.model, self.guide, batch)
        for p in self.parameters:
            if p.grad is not None:
                p.grad /= total
        return torch.as_tensor(loss) / total
