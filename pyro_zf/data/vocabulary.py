"""Vocabularies, tokenisation, and reading of text files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from pyro_zf.data.datasets import DataError

__all__ = [
    "BOS",
    "EOS",
    "UNK",
    "UNKNOWN",
    "Vocabulary",
    "read_text",
    "tokenize_sentence",
    "without_surrogates",
]

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
        """Create a vocabulary of the special symbols followed by the most frequent symbols.

        Among equally frequent symbols, those that occur first are preferred.

        Raises:
            DataError: if the size leaves no room for a symbol that is not special.
        """
        counts = Counter(symbol for sequence in sequences for symbol in sequence)
        return cls.from_counts(counts, size)

    @classmethod
    def from_counts(cls, counts: Counter[str], size: int | None = None) -> Vocabulary:
        """Create a vocabulary from counts; see :meth:`of`."""
        if size is not None and size <= len(SPECIALS):
            raise DataError(
                f"a vocabulary of size {size} has no room for symbols other than {', '.join(SPECIALS)}: "
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
        """Maps each symbol to its index."""
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    def indices(self, tokens: Iterable[str]) -> Int32[np.ndarray, " tokens"]:
        """Return the indices of symbols. Unknown symbols have the index of ``<unk>``."""
        return np.array([self.index.get(token, UNKNOWN) for token in tokens], dtype=np.int32)


def tokenize_sentence(sentence: str) -> list[str]:
    """Split a sentence into lower-case words and punctuation with NLTK's Penn Treebank tokeniser.

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
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        DataError: if the file cannot be read, is empty, is compressed, or has another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise DataError(f"{path} has no text ({len(content)} bytes)")
    for magic, what, how in _COMPRESSED:
        if content.startswith(magic):
            raise DataError(
                f"{path} is {what}, not a text file: convert or unpack it first, with {how} {path.name}"
            )
    if content[257:262] == b"ustar":
        raise DataError(
            f"{path} is a tar archive, not a text file: unpack it first, with tar xf {path.name}"
        )
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} begins with the byte order mark of {encoding.upper()}, but is not valid: "
                    f"{error.reason} at offset {error.start}"
                ) from error
    if nulls := content.count(b"\0"):
        in_even = content[::2].count(b"\0")
        order = "BE" if 2 * in_even > nulls else "LE"
        raise DataError(
            f"{path} contains {nulls:,} NUL bytes, so it is not plain text"
            + (
                f" in UTF-8 but probably UTF-16{order} without a byte order mark; convert it with iconv -f "
                f"UTF-16{order} -t UTF-8"
                if _is_utf16(content, order)
                else "; file -i FILE may name what it is"
            )
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not valid UTF-8: byte 0x{content[error.start]:02x} at offset {error.start} (line "
            f"{line}); convert it from its encoding, which file -i may name, as with iconv -f ENCODING -t UTF-8"
        ) from error


#: First bytes of compressed files, what they are, and the command that unpacks them.
_COMPRESSED = (
    (b"\x1f\x8b", "compressed by gzip", "gunzip -k"),
    (b"PK\x03\x04", "a zip archive", "unzip"),
    (b"BZh", "compressed by bzip2", "bunzip2 -k"),
    (b"\xfd7zXZ", "compressed by xz", "unxz -k"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unzstd -k"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "unlz4 -k"),
    (b"\x1f\x9d", "compressed by compress", "uncompress -k"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (b"%PDF-", "a PDF", "pdftotext"),
    (b"{\\rtf", "a document in RTF", "unrtf --text"),
)
#: Byte order marks; those of UTF-32 come first, since one of them begins with that of UTF-16.
_MARKS = {
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}  # fmt: skip


def _is_utf16(content: bytes, order: str) -> bool:
    """Whether a text has line ends and spaces in UTF-16, and enough bytes that are NUL."""
    blanks = (" ", "\n")
    encoding = f"utf-16-{order.lower()}"
    return len(content) % 2 == 0 and any(
        content.count(blank.encode(encoding)) > len(content) / 2000 for blank in blanks
    )


def without_surrogates(text: str) -> str:
    r"""Restore characters that Python could not decode, as in arguments under another locale than UTF-8.

    Example:
        >>> without_surrogates("\udce2\udc9b\udcb5 \udcff") == "\N{SAILBOAT} \N{REPLACEMENT CHARACTER}"
        True
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def lines_of(text: str) -> Iterator[str]:
    """Iterate over the lines that are not blank, with surrounding whitespace removed."""
    return (line.strip() for line in text.split("\n") if line.strip())
