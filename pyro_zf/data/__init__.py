"""Data sets, downloads and batching. This package does not depend on the models."""

from pyro_zf.data.arrays import load_hdf5
from pyro_zf.data.batching import Batches, StreamBatches, make_batches, padding_ratio
from pyro_zf.data.blizzard import load_blizzard
from pyro_zf.data.covariates import ConditionedDataset
from pyro_zf.data.datasets import (
    ArrayDataset,
    DataError,
    DataSource,
    SequenceDataset,
    Splits,
    TextStream,
)
from pyro_zf.data.imdb import load_imdb
from pyro_zf.data.loaders import splits_of
from pyro_zf.data.mnist import load_mnist
from pyro_zf.data.ptb import load_ptb
from pyro_zf.data.text import load_text
from pyro_zf.data.timit import load_timit
from pyro_zf.data.values import Statistics, Values
from pyro_zf.data.wav import load_wav

__all__ = [
    "ArrayDataset",
    "Batches",
    "ConditionedDataset",
    "DataError",
    "DataSource",
    "SequenceDataset",
    "Splits",
    "Statistics",
    "StreamBatches",
    "TextStream",
    "Values",
    "load_blizzard",
    "load_hdf5",
    "load_imdb",
    "load_mnist",
    "load_ptb",
    "load_text",
    "load_timit",
    "load_wav",
    "make_batches",
    "padding_ratio",
    "splits_of",
]
