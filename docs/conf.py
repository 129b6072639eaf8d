"""Sphinx configuration. Built with warnings as errors: ``sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyro_zf

HERE = Path(__file__).parent

project = "pyro_zf"
author = "The pyro_zf authors"
copyright = "2026, the pyro_zf authors"
version = release = pyro_zf.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # equations show without a network
    "sphinx.ext.viewcode",
]
if os.environ.get("DOCS_ONLINE"):  # links into other projects need their inventories
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
    }

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
exclude_patterns = ["_build", "results"]
nb_execution_mode = "off"  # notebooks are committed with their outputs, and run by the tests
nb_render_markdown_format = "gfm"  # tables in outputs
nb_merge_streams = True
smartquotes = False  # "--lr" is a flag
myst_heading_anchors = 2  # links such as training.md#optimisation, as on GitHub
myst_enable_extensions = ["dollarmath", "amsmath"]
autodoc_typehints = "signature"  # shapes are in the signatures
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
suppress_warnings = ["misc.highlighting_failure"]

notebooks = HERE / "notebooks"
notebooks.mkdir(exist_ok=True)
for source in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
    # Links to pages are relative to the folder in the repository.
    text = source.read_text(encoding="utf-8").replace("](../docs/", "](../")
    (notebooks / source.name).write_text(text, encoding="utf-8")


def _rewrite_links(app: Any, docname: str, source: list[str]) -> None:
    """Links of the pages to notebooks are relative to the folder in the repository, too."""
    source[0] = source[0].replace("](../notebooks/", "](notebooks/")


def setup(app: Any) -> None:
    app.connect("source-read", _rewrite_links)
