"""Published systems, each as a pair of Pyro programs."""

from collections.abc import Callable
from functools import partial

from pyro_zf.models.base import AUX_PREFIX, LAYOUTS, LatentWeight, LossModule, SequenceModel
from pyro_zf.models.latent import LatentSequenceModel
from pyro_zf.models.programs import LATENTS
from pyro_zf.models.rnn import RNN
from pyro_zf.models.srnn import SRNN
from pyro_zf.models.storn import STORN
from pyro_zf.models.variational_bilstm import VariationalBiLSTM
from pyro_zf.models.vrnn import VRNN
from pyro_zf.models.zforcing import DETACH, VARIANTS, ZForcing

__all__ = [
    "AUX_PREFIX",
    "DETACH",
    "LATENTS",
    "LAYOUTS",
    "MODELS",
    "RNN",
    "SRNN",
    "STORN",
    "VARIANTS",
    "VRNN",
    "LatentSequenceModel",
    "LatentWeight",
    "LossModule",
    "SequenceModel",
    "VariationalBiLSTM",
    "ZForcing",
]

#: The systems by name: functions of (data_size, **options). Add an entry to have your own by name.
MODELS: dict[str, Callable[..., SequenceModel]] = {
    "zforcing": ZForcing,
    "variational-bilstm": VariationalBiLSTM,
    "srnn": SRNN,
    "vrnn": VRNN,
    "vrnn-i": partial(VRNN, prior="standard-normal"),
    "storn": STORN,
    "rnn": RNN,
}
