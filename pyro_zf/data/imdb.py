"""Sentences of film reviews, as used for the language models in the papers.

The corpus of the papers (Diao et al. 2014) is no longer available. This module uses aclImdb (Maas et al.
2011) with 100,000 reviews instead, prepared as described in the papers (sentences of fewer than 16 words, a
vocabulary of 16,000 words, split 85/5/10). Perplexities are not comparable with those in the papers.
"""

from __future__ import annotations

import json
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pyro_zf.data.datasets import DataError, DataSource, Splits
from pyro_zf.data.download import fetch, find, search_dirs
from pyro_zf.data.progress import progress_bar
from pyro_zf.data.store import SPLITS, Writer, digest_of, key_of, prepared
from pyro_zf.data.values import Values
from pyro_zf.data.vocabulary import EOS, UNKNOWN, Vocabulary, tokenize_sentence

__all__ = ["load_imdb"]

URLS = ("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",)
SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
NAMES = (
    "aclImdb_v1.tar.gz", "imdb/aclImdb_v1.tar.gz", "aclImdb", "imdb/aclImdb",
    "aclimdb_reviews.jsonl.xz", "imdb/aclimdb_reviews.jsonl.xz",
)  # fmt: skip
#: Paths of the files with single reviews, in folders and archives.
_REVIEW = re.compile(r"(^|/)(train|test)/(pos|neg|unsup)/[^/]+\.txt$")
SHARES = (0.85, 0.05, 0.10)
MAX_TOKENS = 15
#: Number of reviews from which the sentence splitter learns abbreviations.
SPLITTER_REVIEWS = 1000


def load_imdb(
    data_dir: Path | str | None = None,
    protocol: str = "default",
    vocabulary_size: int = 16_000,
    download: bool = True,
    urls: Sequence[str] = URLS,
    max_reviews: int | None = None,
) -> Splits:
    """Load sentences of at most 15 tokens (words and punctuation marks).

    The input of the first step is ``<bos>``, and each sentence ends with ``<eos>``, which is predicted too.
    By default, the data are split by review (85, 5 and 10 %), and copies of a review are kept together, so
    no review is in two splits. With ``"sentences"`` they are split by sentence, as in the code of the
    authors. The vocabulary consists of the most frequent words of the training data plus ``<bos>``,
    ``<eos>`` and ``<unk>``.

    Args:
        data_dir: folder to search first. It contains ``aclImdb_v1.tar.gz``, the unpacked folder ``aclImdb``,
            or ``aclimdb_reviews.jsonl.xz`` (one review ``{"text": ...}`` per line).
        protocol: ``"default"`` or ``"sentences"``.
        vocabulary_size: number of words in the vocabulary.
        download: whether downloads are allowed.
        urls: URLs of the archive.
        max_reviews: maximum number of reviews, chosen at random.

    Raises:
        DataError: if there are no reviews, or a file is invalid.
    """
    if protocol not in ("default", "sentences"):
        raise DataError(f"--protocol {protocol}: IMDB supports default and sentences")
    if vocabulary_size < 1:
        raise DataError(f"--vocabulary-size must be at least 1, got {vocabulary_size}")
    source = _source(search_dirs(data_dir), data_dir is not None, download, urls)
    files = _texts_of(source) if source.is_dir() else [source]
    key = key_of(
        [(p.name, digest_of(p)) for p in files],
        {"protocol": protocol, "size": vocabulary_size, "max": max_reviews},
    )

    def build(file: h5py.File) -> dict[str, Any]:
        return _build(file, source, protocol, vocabulary_size, max_reviews)

    stored = prepared("imdb", key, build)
    notes = stored.notes
    symbols = tuple(notes["vocabulary"])
    values = Values("categorical", len(symbols), start=0)
    datasets = {split: stored.dataset(split, values) for split in SPLITS}
    findings = [
        f"{notes['reviews']:,} reviews ({notes['copies']:,} of them duplicates), "
        f"{notes['sentences']:,} sentences, {notes['kept']:,} of at most {MAX_TOKENS} tokens"
    ]
    for split in SPLITS:
        n = len(datasets[split])
        findings.append(
            f"{split}: {n:,} sentences, {int(datasets[split].steps.sum()):,} tokens with <eos>, "
            f"{100 * notes['unknown'][split]:.2f} % <unk>"
            + (
                f"; {notes['repeated'][split]:,} sentences also occur in the training split"
                if split != "train"
                else ""
            )
        )
    return Splits.of(
        datasets,
        source=DataSource(
            "aclImdb, short sentences", f"{source}, split 85/5/10 by "
            + ("review" if protocol == "default" else "sentence"), False, stored.key,
        ),
        unit="sentence", step_unit="word", vocabulary=symbols, joiner=" ", unknown=UNKNOWN,
        findings=tuple(findings),
    )  # fmt: skip


def _build(
    file: h5py.File, source: Path, protocol: str, size: int, limit: int | None
) -> dict[str, Any]:
    texts = list(_reviews(source))
    rng = np.random.default_rng(42)
    # Copies of a review have the same label, so they are assigned to the same split.
    labels = np.unique([zlib.crc32(t.encode()) for t in texts], return_inverse=True)[1]
    copies = len(texts) - (int(labels.max()) + 1)
    rank = rng.permutation(int(labels.max()) + 1)[labels]
    if limit is not None:
        chosen = np.argsort(rank, kind="stable")[:limit]
        texts, rank = [texts[i] for i in chosen], rank[chosen]
    split_of = _dealt(rank)
    splitter = _splitter([t for t, s in zip(texts, split_of, strict=True) if s == 0])
    total, sentences, owners = 0, [], []
    for i, (number, short) in enumerate(_tokenized(texts, splitter)):
        total += number
        sentences += short
        owners += [split_of[i]] * len(short)
    if protocol == "sentences":
        owners = list(_dealt(rng.permutation(len(sentences))))
    counts = Counter(
        t for s, o in zip(sentences, owners, strict=True) if o == 0 for t in s.split(" ")
    )
    vocabulary = Vocabulary.from_counts(counts, size + 3)
    dtype = np.min_scalar_type(len(vocabulary))
    writer = Writer(file, Values("categorical", len(vocabulary)), dtype)
    known = {s for s, o in zip(sentences, owners, strict=True) if o == 0}
    repeated = dict.fromkeys(SPLITS, 0)
    for sentence, owner in zip(sentences, owners, strict=True):
        repeated[SPLITS[owner]] += sentence in known
        indices = vocabulary.indices([*sentence.split(" "), EOS])
        writer.add(SPLITS[owner], indices.astype(dtype))
    for split in SPLITS:
        if not writer.statistics[split].num_sequences:
            raise DataError(
                f"{source}: {len(texts)} reviews with {len(sentences)} short sentences leave no sentence "
                f"for the {split} split"
            )
    writer.close()
    counted = {s: writer.statistics[s] for s in SPLITS}
    return {
        "vocabulary": vocabulary.symbols, "reviews": len(texts), "copies": copies, "sentences": total,
        "kept": len(sentences), "repeated": repeated,
        "unknown": {s: n.sums[UNKNOWN] / (n.num_steps - n.num_sequences) for s, n in counted.items()},
    }  # fmt: skip


def _dealt(rank: np.ndarray) -> np.ndarray:
    """Assign ranks to training (0), validation (1) and test (2).

    If there are at least three different ranks, each split has at least one.
    """
    different = np.unique(rank)
    valid, test = (max(round(share * len(different)), 1) for share in SHARES[1:])
    place = np.searchsorted(different, rank)
    train = len(different) - valid - test
    return np.where(place < train, 0, np.where(place < train + valid, 1, 2))


def _source(dirs: list[Path], named: bool, download: bool, urls: Sequence[str]) -> Path:
    """Find or download the reviews. If a folder was specified, only this folder is searched."""
    found = find(dirs[:1] if named else dirs, NAMES)
    if found is None and named and _texts_of(dirs[0]):
        return dirs[0]
    if found is not None:
        return found
    if named or not download:
        raise DataError(
            f"no reviews in {', '.join(map(str, dirs[:1] if named else dirs))} (looked for "
            f"{', '.join(NAMES[::2])}); omit --data-dir to download them"
        )
    return fetch(urls, SHA256, dirs[-1], NAMES[0])


def _texts_of(folder: Path) -> list[Path]:
    """Find the files with single reviews."""
    return sorted(p for p in folder.glob("*/*/*.txt") if _REVIEW.search(p.as_posix()))


def _reviews(source: Path) -> Iterator[str]:
    """Iterate over the texts of all reviews, sorted by name.

    Raises:
        DataError: if the source is damaged.
    """
    try:
        if source.is_dir():
            for path in _texts_of(source):
                yield _clean(path.read_bytes(), str(path))
        elif source.name.endswith(".xz"):
            with lzma.open(source, "rt", encoding="utf-8") as file:
                for line in file:
                    yield _clean(json.loads(line)["text"].encode(), str(source))
        else:
            with tarfile.open(source) as archive:
                texts = {
                    m.name: archive.extractfile(m).read()  # type: ignore[union-attr]
                    for m in archive
                    if m.isfile() and _REVIEW.search(m.name)
                }
            for name in sorted(texts):
                yield _clean(texts[name], name)
    except (
        lzma.LZMAError,
        tarfile.TarError,
        EOFError,
        zlib.error,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OSError,
    ) as error:
        raise DataError(f"{source} is damaged or not an archive of reviews ({error})") from error


def _clean(text: bytes, where: str) -> str:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not valid UTF-8 (byte {error.start})") from error
    for tag in ("<br />", "<br/>", "<br>"):
        decoded = decoded.replace(tag, "\n")
    return decoded


def _splitter(texts: Sequence[str]) -> Any:
    """Train a sentence splitter that learns abbreviations from the texts (Kiss and Strunk 2006)."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

    trainer = PunktTrainer()
    trainer.train("\n".join(texts[:SPLITTER_REVIEWS]), finalize=True)
    return PunktSentenceTokenizer(trainer.get_params())


def _tokenized(texts: Sequence[str], splitter: Any) -> Iterator[tuple[int, list[str]]]:
    """For each text, return the number of sentences and the short sentences as space-separated tokens."""
    with progress_bar("imdb", "review", len(texts)) as bar:
        for text in texts:
            number, short = 0, []
            for line in text.splitlines():
                for sentence in splitter.tokenize(line):
                    number += 1
                    if len(sentence.split()) > MAX_TOKENS:  # tokens contain no spaces
                        continue
                    tokens = tokenize_sentence(sentence)
                    if 0 < len(tokens) <= MAX_TOKENS:
                        short.append(" ".join(tokens))
            yield number, short
            bar.update()
