"""Published systems, each as a pair of Pyro programs."""

from pyro_zf.models.base import AUX_PREFIX, LAYOUTS, LatentWeight, LossModule, SequenceModel
from pyro_zf.models.latent import LATENT_SOURCES, LatentSequenceModel
from pyro_zf.models.options import LatentOptions, ModelOptions
from pyro_zf.models.rnn import RNN
from pyro_zf.models.srnn import SRNN
from pyro_zf.models.storn import STORN
from pyro_zf.models.variational_bilstm import VariationalBiLSTM
from pyro_zf.models.vrnn import VRNN, VRNNI
from pyro_zf.models.zforcing import DETACH, VARIANTS, ZForcing

__all__ = [
    "AUX_PREFIX",
    "DETACH",
    "LATENT_SOURCES",
    "LAYOUTS",
    "MODELS",
    "RNN",
    "SRNN",
    "STORN",
    "VARIANTS",
    "VRNN",
    "VRNNI",
    "LatentOptions",
    "LatentSequenceModel",
    "LatentWeight",
    "LossModule",
    "ModelOptions",
    "SequenceModel",
    "VariationalBiLSTM",
    "ZForcing",
]

#: Systems by name. Add an entry to register your own.
MODELS: dict[str, type[SequenceModel]] = {
    "zforcing": ZForcing,
    "variational-bilstm": VariationalBiLSTM,
    "srnn": SRNN,
    "vrnn": VRNN,
    "vrnn-i": VRNNI,
    "storn": STORN,
    "rnn": RNN,
}
