"""A user's own text: a file of UTF-8, by word or by character."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from pyro_zf.data.datasets import (
    ArrayDataset,
    DataError,
    DataSource,
    SequenceDataset,
    Splits,
    TextStream,
)
from pyro_zf.data.store import SPLITS
from pyro_zf.data.values import Values
from pyro_zf.data.vocabulary import (
    EOS,
    SPECIALS,
    UNKNOWN,
    Vocabulary,
    lines_of,
    read_text,
    tokenize_sentence,
)

__all__ = ["Level", "load_text"]

Level = Literal["word", "character"]


def load_text(
    path: Path | str,
    level: Level = "word",
    vocabulary_size: int | None = None,
    segment: int | None = None,
    carried: bool | None = None,
    max_tokens: int | None = None,
) -> Splits:
    """A text file as sequences of symbols.

    By word, a line is a sequence, ended by ``<eos>``, in lower case; by character the text is one
    stream, read in segments. With ``segment`` words are a stream too. The first 90 % of the lines
    are for training, 5 % each for validation and test: a text goes on, so it is not shuffled.

    Args:
        path: the file; or a folder with ``train.txt``, ``valid.txt`` and ``test.txt``.
        level: what a step is.
        vocabulary_size: words (16,000 by default) or characters (by default all of training), with
            ``<bos>``, ``<eos>`` and ``<unk>``.
        segment: steps a segment of a stream; 100 for characters.
        carried: whether a segment goes on with the state of the one before; by default it does.
        max_tokens: lines of more words are left out, and counted; 200 by default.

    Raises:
        DataError: if the file is no text, or too short to be split.
    """
    if level not in ("word", "character"):
        raise DataError(f"--level {level}: a step is a word or a character")
    path = Path(path).expanduser()
    texts = _split_texts(path)
    stream = level == "character" or segment is not None
    if not stream and carried:
        raise DataError("--carry-state goes with a stream: give --segment, or --level character")
    limit = None if stream else max_tokens or 200
    keep = level == "character"  # then every character counts, those before and after lines too
    lines = {s: text.splitlines() if keep else list(lines_of(text)) for s, text in texts.items()}
    if level == "character":
        symbols_of, vocabulary = _characters(lines, vocabulary_size)
        dropped = 0
    else:
        made = {split: [_words(line) for line in lines[split]] for split in SPLITS}
        words = {s: [w for w in made[s] if limit is None or len(w) <= limit] for s in SPLITS}
        dropped = sum(len(made[split]) - len(words[split]) for split in SPLITS)
        vocabulary = Vocabulary.of(words["train"], vocabulary_size or 16_000)
        symbols_of = {s: [vocabulary.indices([*w, EOS]) for w in words[s]] for s in SPLITS}
    values = Values("categorical", len(vocabulary), start=0)
    datasets: dict[str, SequenceDataset] = {}
    findings = [f"{len(vocabulary):,} symbols, <bos>, <eos> and <unk> among them"]
    if dropped:
        findings.append(f"{dropped:,} lines of more than {limit} words were left out")
    for split in SPLITS:
        parts = symbols_of[split]
        if not parts:
            raise DataError(
                f"{path}: no line is left for the {split} split ({len(lines[split])} were there)"
            )
        joined = np.concatenate(parts)
        unknown = 100 * float((joined == UNKNOWN).mean())
        findings.append(
            f"{split}: {len(lines[split]):,} lines, {len(joined):,} {level}s with <eos>, {unknown:.2f} % <unk>"
        )
        if stream:
            datasets[split] = TextStream(joined, values, segment or 100, carried is not False)
            continue
        lengths = np.array([len(line) for line in parts])
        padded = np.zeros((len(parts), lengths.max()), dtype=np.int32)
        for row, line in zip(padded, parts, strict=True):
            row[: len(line)] = line
        datasets[split] = ArrayDataset(padded, lengths, None, values)
    symbols = vocabulary.symbols
    if level == "character":
        symbols = tuple("\n" if s == "<eos>" else s for s in symbols)
    return Splits.of(
        datasets,
        source=DataSource(f"text of {path.name}", f"{path}, by {level}, split 90/5/5", False),
        unit="segment" if stream else "line", step_unit=level, vocabulary=symbols,
        joiner=" " if level == "word" else "", unknown=UNKNOWN, findings=tuple(findings),
    )  # fmt: skip


def _words(line: str) -> list[str]:
    """Words and punctuation of a line; ``<unk>`` and the like stay whole."""
    words: list[str] = []
    for part in _SPECIAL.split(line):
        words += [part] if part in SPECIALS else tokenize_sentence(part)
    return words


_SPECIAL = re.compile("(" + "|".join(SPECIALS) + ")")


def _characters(
    lines: dict[str, list[str]], size: int | None
) -> tuple[dict[str, list[np.ndarray]], Vocabulary]:
    """Indices of the characters of each split, in one piece, and their vocabulary."""
    codes = {
        split: np.frombuffer(("\n".join(part) + "\n").encode("utf-32-le"), np.uint32)
        for split, part in lines.items()
    }
    found, counts = np.unique(codes["train"], return_counts=True)
    counted = Counter(
        {chr(c): int(n) for c, n in zip(found, counts, strict=True) if c != ord("\n")}
    )
    vocabulary = Vocabulary.from_counts(counted, size)
    table = np.full(sys.maxunicode + 1, UNKNOWN, dtype=np.int32)
    for symbol, index in vocabulary.index.items():
        if len(symbol) == 1:
            table[ord(symbol)] = index
    table[ord("\n")] = vocabulary.index[EOS]
    return {split: [table[c]] for split, c in codes.items()}, vocabulary


def _split_texts(path: Path) -> dict[str, str]:
    if path.is_dir():
        missing = [s for s in SPLITS if not (path / f"{s}.txt").is_file()]
        if missing:
            raise DataError(
                f"{path} is a folder without {', '.join(f'{s}.txt' for s in missing)}: name a file, or a "
                "folder with train.txt, valid.txt and test.txt"
            )
        return {split: read_text(path / f"{split}.txt") for split in SPLITS}
    if not path.is_file():
        raise DataError(f"{path} is no file")
    lines = read_text(path).splitlines()
    places = [i for i, line in enumerate(lines) if line.strip()]
    number = len(places)
    if number < 3:
        raise DataError(
            f"{path} has {number} lines with text; at least 3 are needed for training, validation and test"
        )
    small = max(round(0.05 * number), 1)
    first, second = places[number - 2 * small], places[number - small]
    parts = lines[:first], lines[first:second], lines[second:]
    return {split: "\n".join(part) + "\n" for split, part in zip(SPLITS, parts, strict=True)}
