r"""SRNN (Fraccaro, Sønderby, Paquet and Winther 2016, https://arxiv.org/abs/1605.07571).

.. math::

    d_t &= \mathrm{LSTM}(u_t, d_{t-1}) \\
    z_t &\sim p(z_t \mid z_{t-1}, d_t) = \mathcal N(f^{(p)}(z_{t-1}, d_t)) \\
    y_t &\sim p(y_t \mid z_t, d_t) = \mathrm{emission}(f^{(o)}(z_t, d_t)) \\
    a_t &= \mathrm{LSTM}([d_t, y_t], a_{t+1}) \\
    z_t &\sim q(z_t \mid z_{t-1}, a_t) = \mathcal N(\mu^{(p)}_t + \Delta_t, \operatorname{diag}
    \sigma_t^2), \quad [\Delta_t, \log \sigma_t] = f^{(q)}(z_{t-1}, a_t)

where :math:`\mu^{(p)}_t` is the mean of the prior, the residual parametrisation :math:`\mathrm{res}_q`.

========  ====================================================  ==========
symbol    meaning                                               paper
========  ====================================================  ==========
u_t       input, the target of the step before                  u_t
y_t       target                                                x_t
z_t       latent, its own state                                 z_t
d_t       state of the deterministic network                    d_t
a_t       state of the backward network (b_t elsewhere here)    a_t
========  ====================================================  ==========

The deterministic network never reads z, which tells SRNN from all others: it is one call for the
whole sequence, and the chain z_t | z_{t-1} is all that is sequential. Future reaches the posterior
through :math:`a_t` (smooth) and its mean is a correction of the prior's (res_q). The paper has GRUs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.nn.lstm import ChainTransition

__all__ = ["SRNN"]


class SRNN(LatentSequenceModel):
    """SRNN: a chain of latents on top of a deterministic recurrent network.

    Args:
        data_size: values of a step, or number of symbols for a categorical emission.
        posterior: ``"res_q"`` (smooth + res_q, the paper's best), ``"smoothing"`` without the
            residual, ``"filtering"`` (the paper's filt, which reads :math:`d_t, y_t`), others as for
            :class:`~pyro_zf.models.LatentSequenceModel`.
        **options: of :class:`~pyro_zf.models.LatentSequenceModel`; ``backward_size`` are the units of
            the network with the states :math:`a_t`.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch
        >>> from pyro_zf.infer import TraceMeanField_ELBO
        >>> srnn = SRNN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> srnn.loss_module(TraceMeanField_ELBO())(batch).item() > 0
        True
    """

    def __init__(
        self,
        data_size: int,
        *,
        posterior: str | nn.Module = "res_q",
        transition: Any = None,
        name: str = "srnn",
        **options: Any,
    ) -> None:
        super().__init__(
            data_size,
            posterior=posterior,
            transition=transition or ChainTransition,
            deterministic=True,
            name=name,
            **options,
        )
