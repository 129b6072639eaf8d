"""The papers' tables and figures, trained anew and set beside what is printed."""

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
