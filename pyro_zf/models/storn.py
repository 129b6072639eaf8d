r"""STORN (Bayer and Osendorfer 2014, https://arxiv.org/abs/1411.7610).

.. math::

    z_t &\sim p(z_t) = \mathcal N(0, I) \\
    h_t &= \mathrm{LSTM}([u_t, z_t], h_{t-1}) \\
    y_t &\sim p(y_t \mid h_t) = \mathrm{emission}(f^{(o)}(h_t)) \\
    g_t &= \mathrm{LSTM}(y_t, g_{t-1}) \\
    z_t &\sim q(z_t \mid y_{1:t}) = \mathcal N(f^{(q)}(g_t))

========  =======================================================  ==========
symbol    meaning                                                  paper
========  =======================================================  ==========
u_t       input, the target of the step before                     x_{t-1}
y_t       target                                                   x_t
z_t       latent                                                   z_t
h_t       state of the generating network                          h_t
g_t       state of the recognition network                         h^r_t
========  =======================================================  ==========

Neither prior nor posterior looks at :math:`h`, which tells STORN from every other system here: the
latents of a sequence are independent before the data are seen, and all are drawn at once. As in
Z-Forcing, and unlike VRNN and SRNN, z reaches the emission through :math:`h_t` alone. The paper has
simple recurrent networks; the comparisons in the literature have LSTMs or GRUs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_zf.models.latent import LatentSequenceModel

__all__ = ["STORN"]


class STORN(LatentSequenceModel):
    """STORN: latents independent of each other enter a recurrent network.

    Args:
        data_size: values of a step, or number of symbols for a categorical emission.
        prior, posterior: as for :class:`~pyro_zf.models.LatentSequenceModel`; the paper's by default.
        **options: of :class:`~pyro_zf.models.LatentSequenceModel`; ``backward_size`` are the units of
            the recognition network.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch
        >>> from pyro_zf.infer import TraceMeanField_ELBO
        >>> storn = STORN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> storn.loss_module(TraceMeanField_ELBO())(batch).item() > 0
        True
    """

    def __init__(
        self,
        data_size: int,
        *,
        prior: str | nn.Module = "standard-normal",
        posterior: str | nn.Module = "recognition",
        name: str = "storn",
        **options: Any,
    ) -> None:
        super().__init__(data_size, prior=prior, posterior=posterior, name=name, **options)
