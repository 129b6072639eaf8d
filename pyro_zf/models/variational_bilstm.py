r"""Variational Bi-LSTM (Shabanian, Arpit, Trischler and Bengio 2017, https://arxiv.org/abs/1711.05717).

.. math::

    b_t &= \mathrm{LSTM}(u_t, b_{t+1})                                       && \text{section 2} \\
    z_t &\sim p_\theta(z_t \mid h_{t-1}) = \mathcal N(f_\theta(h_{t-1}))      && \text{eq. 4} \\
    z_t &\sim q_\phi(z_t \mid h_{t-1}, b_t) = \mathcal N(f_\phi(h_{t-1}, b_t)) && \text{eq. 3} \\
    \tilde b_t &\sim p_\psi(\tilde b_t \mid z_t) = \mathcal N(f_\psi(z_t))    && \text{eq. 5} \\
    h_t &= \mathrm{LSTM}([u_t, z_t, \tilde b_t], h_{t-1})                    && \text{section 2} \\
    y_t &\sim p_\eta(y_t \mid h_t, \tilde b_t) = \mathrm{emission}(f_\eta(h_t, \tilde b_t))

and the objective of section 2.1,

.. math::

    \sum_t \mathbb E_q \big[ \log p_\eta(y_t \mid h_t, \tilde b_t) + \alpha \log p_\psi(b_t \mid z_t)
    + \beta \log p_\xi(h_{t-1} \mid z_t) \big] - \mathrm{KL}(q_\phi(z_t) \,\|\, p_\theta(z_t)).

==============  ====================================================  ===============
symbol          meaning                                               paper
==============  ====================================================  ===============
u_t             input, the target of the step before                  x_t
y_t             target                                                x_{t+1}
z_t             latent                                                z_t
b~_t            latent that stands in for b_t                         b~_t
h_t             state of the forward network                          h_t
b_t             state of the backward network                         b_t
==============  ====================================================  ===============

It adds three things to Z-Forcing. The reconstruction of :math:`b_t` becomes a latent that the model
uses, :math:`\tilde b_t`, drawn from the same distribution by model and guide and so without a KL. A second
cost reconstructs :math:`h_{t-1}`. And the skip gradient: at a step of a sequence, a coin decides
whether the inputs :math:`h_{t-1}, b_t` of prior and posterior are detached. Note that the letters
differ: Z-Forcing's :math:`\beta` weighs the prediction of :math:`u_t` from :math:`b_t`, which is not
in this paper.

No code of the authors is public. Where the paper is silent, this is what was chosen:

a. :math:`\tilde b_t` is sampled, as eq. 2 takes the expectation over it. ``b_tilde="mean"`` puts it at
   its mean.
b. The probability of the skip gradient is not given; 0.5 is the one number that exists, in the code
   of the first author of Z-Forcing, where it was left unused. One coin a step and sequence, as the
   text says ("at each time step ... for a given data point"); ``skip_per="sequence"`` throws one a
   sequence. It acts on what prior and posterior read, "the stochastic operations with respect to the
   recurrent units"; forward values never change.
c. :math:`b_t` has read :math:`u_t, y_t, \dots, y_T`, as written. ``backward_reads="targets"`` leaves
   :math:`u_t` out, which is Z-Forcing's eq. 6.
d. Both reconstructed states are constants of their costs, for otherwise the networks could make
   them easy to reconstruct; ``detach_targets=False`` lets the gradient through.
e. Means are not squashed. ``reconstruction_form=GaussianForm(mean="tanh")`` squashes them.
f. :math:`\tilde b_t` enters the transition and the emission, as the equations say; ``b_tilde_into``
   leaves either out.
g. The activity regularisation :math:`\gamma \lVert h_t \rVert^2` (eq. 7) is summed over steps, like
   the cost that it replaces in the ablation.
h. The hidden layers have leaky ReLUs, as the paper says, not clipped as Z-Forcing's.
i. At test time z is drawn from the prior or put at its mean (figure 3):
   :meth:`~pyro_zf.models.LatentSequenceModel.drawing_latents_from`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_zf.batch import SequenceBatch
from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.models.programs import MeanOf
from pyro_zf.nn.auxiliary import (
    ActivityRegularization,
    PreviousStateReconstruction,
    StateReconstruction,
)
from pyro_zf.nn.gaussian import GaussianForm

__all__ = ["VariationalBiLSTM"]


class VariationalBiLSTM(LatentSequenceModel):
    r"""Variational Bi-LSTM: a latent channel between the forward and the backward network.

    Args:
        data_size: values of a step, or number of symbols for a categorical emission.
        alpha: weight of :math:`\log p_\psi(b_t \mid z_t)`. The paper: 1 for speech and text (TIMIT,
            Blizzard, IMDB, Penn Treebank), 0.001 for MNIST, the default.
        beta: weight of :math:`\log p_\xi(h_{t-1} \mid z_t)`. The paper: 1 for Blizzard, IMDB and Penn
            Treebank, 0 for TIMIT and MNIST, the default.
        gamma: weight of the activity regularisation; 0 but in the ablation of table 5.
        skip_gradient: probability that the gradient is skipped; see b above.
        skip_per: ``"step"`` or ``"sequence"``.
        prior: ``"gaussian"``, or ``"standard-normal"`` as for Penn Treebank; others as for
            :class:`~pyro_zf.models.LatentSequenceModel`.
        b_tilde: ``"sample"`` or ``"mean"``; see a above.
        b_tilde_into: what reads it, ``"transition"``, ``"emission"`` or both; without any there is no
            such latent.
        backward_reads: ``"inputs"`` or ``"targets"``; see c above.
        detach_targets: see d above.
        activation: of the hidden layers; leaky ReLU in the paper, which does not give its slope.
        reconstruction_form: how the outputs of :math:`f_\psi, f_\xi` become Gaussians.
        **options: of :class:`~pyro_zf.models.LatentSequenceModel`.

    Raises:
        ValueError: for an unknown name, a weight below zero, or a probability outside 0..1.

    Example:
        >>> import torch
        >>> from pyro_zf.infer import TraceMeanField_ELBO
        >>> vbl = VariationalBiLSTM(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> vbl.loss_module(TraceMeanField_ELBO())(batch).item() > 0
        True
        >>> with vbl.drawing_latents_from("prior-mean"):
        ...     vbl.generate(torch.zeros(2, 4), num_steps=5).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        data_size: int,
        *,
        alpha: float = 0.001,
        beta: float = 0.0,
        gamma: float = 0.0,
        skip_gradient: float = 0.5,
        b_tilde: Literal["sample", "mean"] = "sample",
        b_tilde_into: tuple[str, ...] = ("transition", "emission"),
        backward_reads: Literal["inputs", "targets"] = "inputs",
        detach_targets: bool = True,
        reconstruction_form: GaussianForm | None = None,
        hidden_size: int = 1024,
        backward_size: int | None = None,
        activation: str = "leaky-relu",
        deterministic: bool = False,
        aux: Any = None,
        name: str = "variational-bilstm",
        **options: Any,
    ) -> None:
        if b_tilde not in ("sample", "mean"):
            raise ValueError(f"b~ is drawn by 'sample' or 'mean', not {b_tilde!r}")
        if backward_reads not in ("inputs", "targets"):
            raise ValueError(
                f"the backward network reads 'inputs' or 'targets', not {backward_reads!r}"
            )
        if unknown := set(b_tilde_into) - {"transition", "emission"}:
            raise ValueError(f"b~ goes into 'transition' and 'emission', not {unknown.pop()!r}")
        if deterministic and backward_reads == "inputs":
            raise ValueError("a deterministic network goes with backward_reads='targets' alone")
        super().__init__(
            data_size,
            activation=activation,
            deterministic=deterministic,
            hidden_size=hidden_size,
            backward_size=backward_size,
            skip_gradient=skip_gradient,
            echo_size=(backward_size or hidden_size) if b_tilde_into else 0,
            echo_read="transition" in b_tilde_into,
            echo_emitted="emission" in b_tilde_into,
            name=name,
            **options,
        )
        self.backward_reads = backward_reads
        self.b_tilde_by = b_tilde if b_tilde_into else None
        state_size = self.transition.state_sizes[0]
        heads: dict[str, Any] = {
            **self._mlp, "form": reconstruction_form, "detach_target": detach_targets
        }  # fmt: skip
        b = StateReconstruction(self.latent_size, self.backward_size, state_size, **heads)
        h = PreviousStateReconstruction(self.latent_size, state_size, state_size, **heads)
        self.add_aux("b", b, alpha)
        if beta:
            self.add_aux("h", h, beta)
        if gamma:
            self.add_aux("activity", ActivityRegularization(), gamma)
        self._add_all(aux)

    @property
    def echo(self) -> Any:  # type: ignore[override]
        """The distribution of b~ given z, where it is a latent."""
        if self.b_tilde_by != "sample":
            return None
        head = self.aux["b"].head
        return MeanOf(head) if self.latents == "prior-mean" else head  # type: ignore[arg-type]

    @property
    def latent_layer(self) -> nn.Module | None:
        standard = type(self).embed_latent is VariationalBiLSTM.embed_latent
        return self.latent_embedding if standard and self.b_tilde_by != "mean" else None

    def embed_latent(self, z: Tensor, b_tilde: Tensor | None = None) -> Tensor:
        if self.b_tilde_by == "mean":
            b_tilde = self.aux["b"].head.moments(z)[0]  # type: ignore[union-attr,operator]
        return super().embed_latent(z, b_tilde)

    def backward_states(self, batch: SequenceBatch, inputs: Tensor) -> Tensor:
        if self.backward_reads == "targets":
            return super().backward_states(batch, inputs)
        # From y_T down to u_1: one step more than there are targets, whose state is left out.
        assert self.backward_network is not None and batch.targets is not None
        all_steps = torch.cat([batch.clean_inputs[:, :1], batch.targets], dim=1)
        lengths = None if batch.lengths is None else batch.lengths + 1
        longer = SequenceBatch(all_steps, None, lengths)
        states: Tensor = self.backward_network(self.embedding(longer.inputs), longer)
        return states[:-1]
