"""Data sets, downloads and batching. Knows nothing of models."""

from pyro_zf.data.batching import Batches
from pyro_zf.data.datasets import DataError, DataSource, SequenceDataset, Splits
from pyro_zf.data.mnist import load_mnist

__all__ = ["Batches", "DataError", "DataSource", "SequenceDataset", "Splits", "load_mnist"]
