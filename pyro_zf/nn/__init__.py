"""Networks and conditional distributions, the parts that a model is put together from."""

from pyro_zf.nn.auxiliary import AuxiliaryCost, ReversePrediction, StateReconstruction, StepStates
from pyro_zf.nn.emissions import (
    EMISSIONS,
    BernoulliEmission,
    CategoricalEmission,
    GaussianEmission,
    build_emission,
)
from pyro_zf.nn.gaussian import GaussianForm, GaussianHead
from pyro_zf.nn.lstm import BackwardLSTM, LSTMTransition, Transition
from pyro_zf.nn.mlp import ACTIVATIONS, MLP, ClippedLeakyReLU
from pyro_zf.nn.posteriors import SmoothingPosterior
from pyro_zf.nn.priors import GaussianPrior, StandardNormalPrior

__all__ = [
    "ACTIVATIONS",
    "EMISSIONS",
    "MLP",
    "AuxiliaryCost",
    "BackwardLSTM",
    "BernoulliEmission",
    "CategoricalEmission",
    "ClippedLeakyReLU",
    "GaussianEmission",
    "GaussianForm",
    "GaussianHead",
    "GaussianPrior",
    "LSTMTransition",
    "ReversePrediction",
    "SmoothingPosterior",
    "StandardNormalPrior",
    "StateReconstruction",
    "StepStates",
    "Transition",
    "build_emission",
]
