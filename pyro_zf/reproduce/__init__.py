"""Reproduction of the papers' tables and figures, compared with the published values."""

from pyro_zf.reproduce.published import TABLES, Row, Section, Table
from pyro_zf.reproduce.render import reproduce
from pyro_zf.reproduce.systems import SCALES, SYSTEMS, Scale, Training

__all__ = [
    "SCALES",
    "SYSTEMS",
    "TABLES",
    "Row",
    "Scale",
    "Section",
    "Table",
    "Training",
    "reproduce",
]
