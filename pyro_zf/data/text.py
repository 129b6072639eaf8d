"""The user's own text: a UTF-8 file, read by word or by character."""

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
    """Load a text file as sequences of symbols.

    At word level, each line is a sequence in lower case that ends with ``<eos>``. At character level, the
    text is one stream that is read in segments; with ``segment``, words are read as a stream too. The first
    90 % of the lines are used for training, and the following 5 % each for validation and test. The lines
    are not shuffled, since consecutive lines belong together.

    Args:
        path: the file, or a folder with ``train.txt``, ``valid.txt`` and ``test.txt``.
        level: unit of a step, ``"word"`` or ``"character"``.
        vocabulary_size: size of the vocabulary, including ``<bos>``, ``<eos>`` and ``<unk>``. Default: 16,000
            for words, and all characters of the training data for characters.
        segment: number of steps per segment of a stream. Default for characters: 100.
        carried: whether each segment starts from the final state of the previous segment; true by default.
        max_tokens: lines with more words are skipped and counted; 200 by default.

    Raises:
        DataError: if the file is not a text, or is too short to be split.
    """
    if level not in ("word", "character"):
        raise DataError(f"--level {level}: it must be word or character")
    path = Path(path).expanduser()
    texts = _split_texts(path)
    stream = level == "character" or segment is not None
    if not stream and carried:
        raise DataError("--carry-state requires a stream: set --segment or --level character")
    limit = None if stream else max_tokens or 200
    keep = (
        level == "character"
    )  # then all characters are kept, including whitespace and blank lines
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
    findings = [f"{len(vocabulary):,} symbols, including <bos>, <eos> and <unk>"]
    if dropped:
        findings.append(f"{dropped:,} lines of more than {limit} words were skipped")
    for split in SPLITS:
        parts = symbols_of[split]
        if not parts:
            raise DataError(
                f"{path}: no line is left for the {split} split ({len(lines[split])} lines before "
                "filtering)"
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
    """Split a line into words and punctuation marks. Special symbols such as ``<unk>`` are not split."""
    words: list[str] = []
    for part in _SPECIAL.split(line):
        words += [part] if part in SPECIALS else tokenize_sentence(part)
    return words


_SPECIAL = re.compile("(" + "|".join(SPECIALS) + ")")


def _characters(
    lines: dict[str, list[str]], size: int | None
) -> tuple[dict[str, list[np.ndarray]], Vocabulary]:
    """Indices of the characters of each split as one array, and the vocabulary."""
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
                f"{path} is a folder without {', '.join(f'{s}.txt' for s in missing)}: specify a file, or "
                "a folder with train.txt, valid.txt and test.txt"
            )
        return {split: read_text(path / f"{split}.txt") for split in SPLITS}
    if not path.is_file():
        raise DataError(f"{path} is not a file")
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
