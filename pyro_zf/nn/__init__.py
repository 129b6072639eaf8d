"""Networks and conditional distributions, the parts that a model is put together from."""

from pyro_zf.nn.auxiliary import (
    AUX_COSTS,
    ActivityRegularization,
    AuxiliaryCost,
    PreviousStateReconstruction,
    ReversePrediction,
    StateReconstruction,
    StepStates,
    build_aux_cost,
)
from pyro_zf.nn.distributions import AutoregressiveNormal, DiscretizedLogisticMixture
from pyro_zf.nn.emissions import (
    EMISSIONS,
    AutoregressiveGaussianEmission,
    BernoulliEmission,
    CategoricalEmission,
    GaussianEmission,
    GaussianMixtureEmission,
    LogisticMixtureEmission,
    make_emission,
)
from pyro_zf.nn.flows import FlowHead
from pyro_zf.nn.gaussian import GaussianForm, GaussianHead, GaussianMixtureHead
from pyro_zf.nn.lstm import (
    BackwardLSTM,
    ChainTransition,
    ForwardLSTM,
    InputLSTM,
    LSTMTransition,
    Transition,
)
from pyro_zf.nn.mlp import ACTIVATIONS, MLP, ClippedLeakyReLU
from pyro_zf.nn.posteriors import (
    POSTERIORS,
    FilteringPosterior,
    FlowPosterior,
    RecognitionPosterior,
    ResidualPosterior,
    SmoothingPosterior,
    build_posterior,
)
from pyro_zf.nn.priors import (
    PRIORS,
    FlowPrior,
    GaussianMixturePrior,
    GaussianPrior,
    StandardNormalPrior,
    build_prior,
)

__all__ = [
    "ACTIVATIONS",
    "AUX_COSTS",
    "EMISSIONS",
    "MLP",
    "POSTERIORS",
    "PRIORS",
    "ActivityRegularization",
    "AutoregressiveGaussianEmission",
    "AutoregressiveNormal",
    "AuxiliaryCost",
    "BackwardLSTM",
    "BernoulliEmission",
    "CategoricalEmission",
    "ChainTransition",
    "ClippedLeakyReLU",
    "DiscretizedLogisticMixture",
    "FilteringPosterior",
    "FlowHead",
    "FlowPosterior",
    "FlowPrior",
    "ForwardLSTM",
    "GaussianEmission",
    "GaussianForm",
    "GaussianHead",
    "GaussianMixtureEmission",
    "GaussianMixtureHead",
    "GaussianMixturePrior",
    "GaussianPrior",
    "InputLSTM",
    "LSTMTransition",
    "LogisticMixtureEmission",
    "PreviousStateReconstruction",
    "RecognitionPosterior",
    "ResidualPosterior",
    "ReversePrediction",
    "SmoothingPosterior",
    "StandardNormalPrior",
    "StateReconstruction",
    "StepStates",
    "Transition",
    "build_aux_cost",
    "build_posterior",
    "build_prior",
    "make_emission",
]
