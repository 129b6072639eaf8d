"""The user's own text: a text file, read by word or by character."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from pyro_zf.data.datasets import (
    ArrayDataset,
    DataError,
    DataSource,
    SequenceDataset,
    Splits,
    TextStream,
    held_out,
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
S = TypeVar("S", str, list[str], list[list[str]])


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
    90 % of the lines, or of the symbols of a stream, are used for training, and the following 5 % each for
    validation and test. They are not shuffled, since consecutive lines belong together.

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
    stream = level == "character" or segment is not None
    if not stream and carried:
        raise DataError("--carry-state requires a stream: set --segment or --level character")
    limit = None if stream else max_tokens or 200
    texts = _read_texts(path)
    blank = 0
    if level == "character":  # all characters are kept, including whitespace and blank lines
        pieces: dict[str, Any] = _split(texts, path, "characters")
        symbols_of, vocabulary = _characters(pieces, vocabulary_size)
    else:
        lines = {split: list(lines_of(text)) for split, text in texts.items()}
        blank = sum(text.count("\n") for text in texts.values()) - sum(map(len, lines.values()))
        made = {split: [[*_words(line), EOS] for line in of] for split, of in lines.items()}
        if stream:
            words = {split: [w for line in of for w in line] for split, of in made.items()}
            pieces = {split: [part] for split, part in _split(words, path, "words").items()}
        else:
            pieces = _split(made, path, "lines with text")
    findings = []
    if level == "word":
        short = {s: [w for w in pieces[s] if limit is None or len(w) <= limit + 1] for s in SPLITS}
        dropped = {split: len(pieces[split]) - len(short[split]) for split in SPLITS}
        if empty := [split for split in SPLITS if not short[split]]:
            number = sum(map(len, pieces.values()))
            raise DataError(
                f"{path}: no line is left for the {empty[0]} split, since {sum(dropped.values()):,} of "
                f"{number:,} lines have more than {limit} words; read the text in segments, for example with "
                "--segment 50"
            )
        vocabulary = Vocabulary.of(short["train"], vocabulary_size or 16_000)
        symbols_of = {s: [vocabulary.indices(w) for w in short[s]] for s in SPLITS}
        if any(dropped.values()):
            findings.append(
                f"{sum(dropped.values()):,} lines of more than {limit} words were left out "
                "(--segment N reads them in segments)"
            )
        if blank > 0:
            findings.append(f"{blank:,} blank lines were left out")
    values = Values("categorical", len(vocabulary), start=0)
    datasets: dict[str, SequenceDataset] = {}
    findings.insert(0, f"{len(vocabulary):,} symbols, including <bos>, <eos> and <unk>")
    for split in SPLITS:
        parts = symbols_of[split]
        joined = np.concatenate(parts)
        unknown = 100 * float((joined == UNKNOWN).mean())
        number_of = f"{len(parts):,} lines, " if not stream else ""
        findings.append(
            f"{split}: {number_of}{len(joined):,} {level}s with <eos>, {unknown:.2f} % <unk>"
        )
        if stream:
            datasets[split] = TextStream(joined, values, segment or 100, carried is not False)
            continue
        lengths = np.array([len(line) for line in parts])
        padded = np.zeros((len(parts), lengths.max()), dtype=np.int32)
        for row, line in zip(padded, parts, strict=True):
            row[: len(line)] = line
        datasets[split] = ArrayDataset(padded, lengths, None, values)
    numbers = [sum(map(len, symbols_of[s])) if stream else len(symbols_of[s]) for s in SPLITS]
    symbols = vocabulary.symbols
    if level == "character":
        symbols = tuple("\n" if s == "<eos>" else s for s in symbols)
    return Splits.of(
        datasets,
        source=DataSource(
            f"text of {path.name}",
            f"{path}, by {level}, "
            + (
                "with the splits of the folder"
                if path.is_dir()
                else f"split {'/'.join(f'{n:,}' for n in numbers)} by {level if stream else 'line'}"
            ),
            False,
        ),
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
    texts: dict[str, str], size: int | None
) -> tuple[dict[str, list[np.ndarray]], Vocabulary]:
    """Indices of the characters of each split as one array, and the vocabulary."""
    codes = {s: np.frombuffer(text.encode("utf-32-le"), np.uint32) for s, text in texts.items()}
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


def _read_texts(path: Path) -> dict[str, str]:
    """The texts of a folder by split, or the text of a file under an empty name; lines end with newlines.

    Raises:
        DataError: if a file is missing or cannot be read.
    """
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} is not a file")
        return {"": _with_newlines(read_text(path))}
    missing = [s for s in SPLITS if not (path / f"{s}.txt").is_file()]
    if missing:
        raise DataError(
            f"{path} is a folder without {', '.join(f'{s}.txt' for s in missing)}: specify a file, or "
            "a folder with train.txt, valid.txt and test.txt"
        )
    return {split: _with_newlines(read_text(path / f"{split}.txt")) for split in SPLITS}


def _with_newlines(text: str) -> str:
    """The text with Unix line ends, the last of them included; other characters are kept."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n") + "\n"


def _split(parts: dict[str, S], path: Path, what: str) -> dict[str, S]:
    """Split what a file contains 90/5/5, in its order; a folder comes with its splits.

    Raises:
        DataError: if there are fewer than three parts.
    """
    if "" not in parts:
        return parts
    whole = parts[""]
    small = held_out(len(whole), f"{path} has {len(whole)} {what}")
    first, second = len(whole) - 2 * small, len(whole) - small
    return {"train": whole[:first], "valid": whole[first:second], "test": whole[second:]}  # type: ignore[dict-item]
