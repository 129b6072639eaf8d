"""Symbols of texts: which there are, and how a text becomes indices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from pyro_zf.data.datasets import DataError

__all__ = ["BOS", "EOS", "UNK", "UNKNOWN", "Vocabulary", "read_text", "tokenize_sentence"]

BOS, EOS, UNK = "<bos>", "<eos>", "<unk>"
SPECIALS = (BOS, EOS, UNK)
#: The index of ``<unk>``.
UNKNOWN = SPECIALS.index(UNK)


@dataclass(frozen=True)
class Vocabulary:
    """Symbols in the order of their indices.

    Example:
        >>> vocabulary = Vocabulary.of([["to", "be"], ["or", "to", "do"]], size=5)
        >>> vocabulary.symbols
        ('<bos>', '<eos>', '<unk>', 'to', 'be')
        >>> vocabulary.indices(["be", "good"]).tolist()
        [4, 2]
    """

    symbols: tuple[str, ...]

    @classmethod
    def of(cls, sequences: Iterable[Iterable[str]], size: int | None = None) -> Vocabulary:
        """The most frequent symbols (of equal ones those that come first), behind the specials.

        Raises:
            DataError: if the size leaves no room for one.
        """
        counts = Counter(symbol for sequence in sequences for symbol in sequence)
        return cls.from_counts(counts, size)

    @classmethod
    def from_counts(cls, counts: Counter[str], size: int | None = None) -> Vocabulary:
        """Likewise, from what has been counted."""
        if size is not None and size <= len(SPECIALS):
            raise DataError(
                f"a vocabulary of {size} has no room for a symbol beside {', '.join(SPECIALS)}: "
                f"--vocabulary-size must be at least {len(SPECIALS) + 1}"
            )
        for special in SPECIALS:
            counts.pop(special, None)
        kept = None if size is None else size - len(SPECIALS)
        return cls((*SPECIALS, *(symbol for symbol, _ in counts.most_common(kept))))

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def index(self) -> dict[str, int]:
        """Symbol -> index."""
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    def indices(self, tokens: Iterable[str]) -> Int32[np.ndarray, " tokens"]:
        """Indices of symbols; those that are not known have that of ``<unk>``."""
        return np.array([self.index.get(token, UNKNOWN) for token in tokens], dtype=np.int32)


def tokenize_sentence(sentence: str) -> list[str]:
    """Words and punctuation of a sentence in lower case, by NLTK's tokeniser (that of the Penn Treebank).

    Example:
        >>> tokenize_sentence("Can't get enough.")
        ['ca', "n't", 'get', 'enough', '.']
    """
    from nltk.tokenize.destructive import NLTKWordTokenizer

    global _tokenizer
    if _tokenizer is None:
        _tokenizer = NLTKWordTokenizer()
    tokens: list[str] = _tokenizer.tokenize(sentence.lower())
    return tokens


_tokenizer: NLTKWordTokenizer | None = None  # type: ignore[name-defined]  # noqa: F821


def read_text(path: Path) -> str:
    """A file of UTF-8.

    Raises:
        DataError: if it is not to be had, empty, or something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise DataError(f"{path} has no text ({len(content)} bytes)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is no UTF-8: byte 0x{content[error.start]:02x} at offset {error.start} (line {line}); "
            "convert it, for example by iconv -f latin1 -t utf-8"
        ) from error


def lines_of(text: str) -> Iterator[str]:
    """Lines that hold something, without what surrounds them."""
    return (line.strip() for line in text.splitlines() if line.strip())
