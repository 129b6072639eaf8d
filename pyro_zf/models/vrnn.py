r"""VRNN (Chung, Kastner, Dinh, Goel, Courville and Bengio 2015, https://arxiv.org/abs/1506.02216).

.. math::

    h_t &= \mathrm{LSTM}([\varphi_x(u_t), \varphi_z(z_{t-1})], h_{t-1})      && \text{eq. 7} \\
    z_t &\sim p(z_t \mid h_t) = \mathcal N(f^{(p)}(h_t))                      && \text{eq. 5} \\
    z_t &\sim q(z_t \mid h_t, y_t) = \mathcal N(f^{(q)}(h_t, \varphi_x(y_t))) && \text{eq. 9} \\
    y_t &\sim p(y_t \mid h_t, z_t) = \mathrm{emission}(f^{(o)}(h_t, \varphi_z(z_t))) && \text{eq. 6}

===============  =======================================================  ===============
symbol           meaning                                                  paper
===============  =======================================================  ===============
u_t              input, the target of the step before                     x_{t-1}
y_t              target                                                   x_t
z_t              latent                                                   z_t
h_t              state that has read u_1..u_t and z_1..z_{t-1}            h_{t-1}
φ_x, φ_z         features of data and latents                             φ_τ
===============  =======================================================  ===============

The index of h is ours: the paper's :math:`h_{t-1}` has read :math:`x_{t-1} = u_t`, so that it is our
:math:`h_t`. The first state has read the start symbol :math:`u_1` where the paper has zeros. Unlike
Z-Forcing, the posterior knows nothing of the future (filtering), the prior has seen the last
observation, and z goes to the emission directly. ``prior="standard-normal"`` is VRNN-I,
``emission="gaussian-mixture"`` is VRNN-GMM (20 components in the paper).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.nn.lstm import LSTMTransition, Transition

__all__ = ["VRNN"]


class VRNN(LatentSequenceModel):
    """VRNN: a prior that depends on the past, and a posterior that filters.

    Args:
        data_size: values of a step, or number of symbols for a categorical emission.
        posterior: as for :class:`~pyro_zf.models.LatentSequenceModel`; the paper's by default.
        embedding_size, latent_embedding_size: sizes of the feature layers; ``mlp_size`` by default.
        feature_activation: of the feature layers; ``activation`` by default. The paper has four
            layers each on speech; one is the default here.
        orthogonal, forget_bias: of the LSTM.
        **options: of :class:`~pyro_zf.models.LatentSequenceModel`.

    Example:
        >>> import torch
        >>> from pyro_zf import SequenceBatch
        >>> from pyro_zf.infer import TraceMeanField_ELBO
        >>> vrnn = VRNN(4, hidden_size=8, latent_size=2, mlp_size=8)
        >>> batch = SequenceBatch.from_targets(torch.ones(3, 5, 4))
        >>> vrnn.loss_module(TraceMeanField_ELBO())(batch).item() > 0
        True
    """

    def __init__(
        self,
        data_size: int,
        *,
        hidden_size: int = 1024,
        mlp_size: int = 1024,
        posterior: str | nn.Module = "filtering",
        embedding_size: int | None = None,
        latent_embedding_size: int | None = None,
        activation: str = "clipped-leaky-relu",
        feature_activation: str | None = None,
        orthogonal: bool = True,
        forget_bias: float = 0.0,
        transition: Any = None,
        name: str = "vrnn",
        **options: Any,
    ) -> None:
        def late_lstm(input_size: int, read_size: int) -> Transition:
            return LSTMTransition(
                input_size, read_size, hidden_size, orthogonal, forget_bias,
                lag=1, emitted=read_size,
            )  # fmt: skip

        super().__init__(
            data_size,
            hidden_size=hidden_size,
            mlp_size=mlp_size,
            posterior=posterior,
            embedding_size=embedding_size or mlp_size,
            latent_embedding_size=latent_embedding_size or mlp_size,
            activation=activation,
            feature_activation=feature_activation or activation,
            orthogonal=orthogonal,
            forget_bias=forget_bias,
            transition=transition or late_lstm,
            name=name,
            **options,
        )
