"""Tests of texts: tokens, vocabularies and splits."""

from __future__ import annotations

import io
import itertools
import json
import lzma
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pyro_zf.data import DataError, StreamBatches, load_imdb, load_ptb, load_text, make_batches

SPLITS = ("train", "valid", "test")


# Penn Treebank


def test_penn_treebank(real_data: Path) -> None:
    data = load_ptb(real_data)
    sizes = {s: len(data[s].symbols) for s in SPLITS}  # type: ignore[attr-defined]
    assert sizes == {"train": 5_017_482, "valid": 393_042, "test": 442_423}
    assert data.data_size == 50
    assert data.source.comparable
    for split in ("valid", "test"):  # the published character files contain the same text
        import gzip

        path = real_data / "ptb" / f"ptb.char.{split}.txt.gz"
        tokens = gzip.decompress(path.read_bytes()).decode().replace("\n", " <eos> ").split()
        shown = [{"_": " ", "<eos>": "\n"}.get(t, t) for t in tokens]
        assert data.text(data[split].symbols) == "".join(shown)  # type: ignore[attr-defined]
    streams = make_batches(data.test, 32)
    assert isinstance(streams, StreamBatches)
    counted = sum(
        int(b.lengths.sum()) if b.lengths is not None else b.inputs.numel()
        for b in streams.epoch(0)
    )
    assert counted == 442_423, "every character is counted once"
    independent = make_batches(load_ptb(real_data, segment=50, carried=False).test, 64)
    counted = sum(
        int(b.lengths.sum()) if b.lengths is not None else b.inputs.numel()
        for b in independent.epoch(0)
    )
    assert counted == 442_423
    bits = data.marginal_nats("test") * len(data.test) / 442_423 / np.log(2)
    assert 4.3 < bits < 4.4


def test_another_penn_treebank_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"ptb.train.txt is not in .*disables downloads.*manually"):
        load_ptb(tmp_path)
    (tmp_path / "ptb.train.txt").write_text("no it was n't\n")
    with pytest.raises(
        DataError, match=r"SHA-256 does not match that of Mikolov's.*--dataset text"
    ):
        load_ptb(tmp_path)
    (tmp_path / "ptb.train.txt").unlink()
    (tmp_path / "PTB.train.txt.gz").write_bytes(b"nothing zipped")
    with pytest.raises(DataError, match="is damaged or cannot be read"):
        load_ptb(tmp_path)


# IMDB

REVIEWS = [
    "I loved it. Nobody else did!<br /><br />A sequel, please: it's better than e.g. the first one.",
    "Mr. Smith can't act. "
    + "This sentence is far too long to be kept by anybody who wants " * 3
    + ".",
]


def reviews(number: int) -> list[str]:
    rng = np.random.default_rng(0)
    nouns = [f"word{i}" for i in range(30)]
    made = [
        " ".join(
            f"The {nouns[rng.geometric(0.2) % 30]} is {nouns[rng.integers(30)]}." for _ in range(3)
        )
        for _ in range(number)
    ]
    return [*made, *made[:5], *REVIEWS]  # five copies


def write_jsonl(path: Path, texts: list[str]) -> None:
    with lzma.open(path, "wt") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")


def test_reviews_in_any_format(tmp_path: Path, cache: Path) -> None:
    texts = reviews(60)
    write_jsonl(tmp_path / "aclimdb_reviews.jsonl.xz", texts)
    first = load_imdb(tmp_path, vocabulary_size=20)
    folder = tmp_path / "b" / "aclImdb" / "train" / "unsup"
    folder.mkdir(parents=True)
    for i, text in enumerate(texts):
        (folder / f"{i:05d}_0.txt").write_text(text)
    (tmp_path / "c").mkdir()
    with tarfile.open(tmp_path / "c" / "aclImdb_v1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "b" / "aclImdb", "./aclImdb")
        archive.addfile(tarfile.TarInfo("aclImdb/README"), io.BytesIO(b""))
    for root in ("b", "c"):
        data = load_imdb(tmp_path / root, vocabulary_size=20)
        assert data.vocabulary == first.vocabulary
        for split in SPLITS:
            rows = zip(sentences(data, split), sentences(first, split), strict=True)
            assert all(a == b for a, b in rows)
    found = load_imdb(tmp_path / "b" / "aclImdb", vocabulary_size=20)
    assert found.vocabulary == first.vocabulary, "same result from the folder itself"
    for i, path in enumerate(folder.iterdir()):
        path.write_text(f"Completely different words here now, {i}.")
    assert "completely" in (load_imdb(tmp_path / "b", vocabulary_size=20).vocabulary or ())


def test_more_words_than_sixteen_bits_hold(tmp_path: Path, cache: Path) -> None:
    texts = [" ".join(f"w{10 * i + j}" for j in range(10)) + "." for i in range(8000)]
    write_jsonl(tmp_path / "aclimdb_reviews.jsonl.xz", texts)
    data = load_imdb(tmp_path, vocabulary_size=100_000)
    assert data.data_size > 2**16
    shown = set(" ".join(sentences(data, "train")).split())
    assert shown == set(data.vocabulary or ()) - {"<bos>", "<unk>"}


def sentences(data, split):  # type: ignore[no-untyped-def]
    return [data.text(data[split][i]) for i in range(len(data[split]))]


def test_sentences_of_reviews(tmp_path: Path, cache: Path) -> None:
    texts = reviews(60)
    write_jsonl(tmp_path / "aclimdb_reviews.jsonl.xz", texts)
    data = load_imdb(tmp_path, vocabulary_size=20)
    assert data.data_size == 23
    assert len(data.vocabulary or ()) == 23
    everything = {s: sentences(data, s) for s in SPLITS}
    assert all(
        s.endswith(" <eos>") and "<bos>" not in s for s in itertools.chain(*everything.values())
    )
    assert "67 reviews (5 of them duplicates)" in data.findings[0]
    # No review is in two splits, including its copies.
    wide = load_imdb(tmp_path, vocabulary_size=1000)
    owner: dict[str, set[str]] = {}
    for split in SPLITS:
        joined = " ".join(sentences(wide, split))
        for text in set(texts):
            if text not in REVIEWS and text.lower().replace(".", " . <eos>") in joined:
                owner.setdefault(text, set()).add(split)
    assert len(owner) == 60
    assert all(len(splits) == 1 for splits in owner.values())
    shares = Counter(next(iter(s)) for s in owner.values())
    assert shares["train"] >= 45
    assert shares["valid"] >= 1
    assert shares["test"] >= 3
    # The vocabulary is built from training data only.
    counts = Counter(" ".join(sentences(wide, "train")).split())
    del counts["<eos>"]
    assert set(wide.vocabulary or ()) == {"<bos>", "<eos>", "<unk>", *counts}
    kept = [w for w, _ in counts.most_common(20)]
    assert min(counts[w] for w in data.vocabulary[3:]) >= min(counts[w] for w in kept)  # type: ignore[index]
    joined = " | ".join(itertools.chain(*(sentences(wide, s) for s in SPLITS)))
    assert "far too long" not in joined
    batch = next(iter(make_batches(data.train, 4)))
    assert (batch.inputs[:, 0] == 0).all(), "<bos>"
    assert batch.has_start_symbol
    by_sentence = load_imdb(tmp_path, protocol="sentences", vocabulary_size=20)
    total = sum(len(by_sentence[s]) for s in SPLITS)
    assert total == sum(len(data[s]) for s in SPLITS)
    assert len(by_sentence.train) == pytest.approx(0.85 * total, abs=2)


def test_real_reviews(real_data: Path, cache: Path) -> None:
    data = load_imdb(real_data, max_reviews=300)
    shown = list(itertools.chain(*(sentences(data, s) for s in SPLITS)))
    assert all(len(s.split()) <= 16 for s in shown)
    tokens = Counter(" ".join(shown).split())
    assert tokens["."] > 100
    assert tokens["n't"] > 5, "contractions are split"
    assert not any("<br" in s for s in shown)
    assert data.marginal_nats("test") > 30


def test_damaged_reviews(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"aclImdb_v1\.tar\.gz is not in"):
        load_imdb()
    with pytest.raises(DataError, match=r"no reviews in .* \(looked for aclImdb_v1.tar.gz"):
        load_imdb(tmp_path)
    (tmp_path / "aclImdb_v1.tar.gz").write_bytes(b"\x1f\x8bno archive")
    with pytest.raises(DataError, match="is damaged or not an archive of reviews"):
        load_imdb(tmp_path)
    (tmp_path / "aclImdb_v1.tar.gz").unlink()
    write_jsonl(tmp_path / "aclimdb_reviews.jsonl.xz", reviews(60))
    whole = (tmp_path / "aclimdb_reviews.jsonl.xz").read_bytes()
    (tmp_path / "aclimdb_reviews.jsonl.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is damaged or not an archive of reviews"):
        load_imdb(tmp_path)
    write_jsonl(tmp_path / "aclimdb_reviews.jsonl.xz", ["One."])
    with pytest.raises(
        DataError, match=r"xz: 1 reviews with 1 short sentences leave no sentence for"
    ):
        load_imdb(tmp_path)
    write_jsonl(tmp_path / "aclimdb_reviews.jsonl.xz", [f"Number {i}." for i in range(5)])
    assert [len(load_imdb(tmp_path)[s]) for s in SPLITS] == [3, 1, 1]
    with lzma.open(tmp_path / "aclimdb_reviews.jsonl.xz", "wt") as file:
        file.write('{"text": null}\n')
    with pytest.raises(DataError, match="is damaged or not an archive of reviews"):
        load_imdb(tmp_path)
    for path in (cache / "prepared").glob("*.h5"):
        path.unlink()
    assert [p.name for p in (cache / "prepared").iterdir()] == [".locks"]
    with pytest.raises(DataError, match="--vocabulary-size must be at least 1"):
        load_imdb(tmp_path, vocabulary_size=0)
    with pytest.raises(DataError, match="IMDB supports default and sentences"):
        load_imdb(tmp_path, protocol="srnn")


# A user's own text


def test_words(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(
        "\ufeff" + "".join(f"Line {i} isn't long.\n\n" for i in range(40)), encoding="utf-8"
    )
    data = load_text(path)
    assert [len(data[s]) for s in SPLITS] == [36, 2, 2]
    batch = next(iter(make_batches(data.train, 1)))
    assert batch.targets is not None
    assert data.text(batch.targets[0].numpy()) == "line 0 is n't long . <eos>"
    assert batch.inputs[0, 0] == 0
    test = next(iter(make_batches(data.test, 2)))
    assert test.targets is not None
    assert data.text(test.targets[0].numpy()) == "line <unk> is n't long . <eos>"
    small = load_text(path, vocabulary_size=6)
    assert small.data_size == 6
    short = load_text(path, max_tokens=6)
    assert len(short.train) == 36
    with pytest.raises(DataError, match="no line is left for the train split"):
        load_text(path, max_tokens=5)
    with pytest.raises(DataError, match="--carry-state requires a stream"):
        load_text(path, carried=True)
    path.write_text('The <unk> cat says "N".\r\n' * 30)
    other = load_text(path)
    batch = next(iter(make_batches(other.train, 1)))
    assert batch.targets is not None
    assert other.text(batch.targets[0].numpy()) == "the <unk> cat says `` n '' . <eos>"
    stream = load_text(path, segment=10)
    assert isinstance(make_batches(stream.train, 2), StreamBatches)


def test_characters_and_folders(tmp_path: Path) -> None:
    for split, text in {"train": "abc\ncab\n", "valid": "ba\n", "test": "abd\n"}.items():
        (tmp_path / f"{split}.txt").write_text(text)
    data = load_text(tmp_path, "character", segment=3)
    assert data.vocabulary == ("<bos>", "\n", "<unk>", "a", "b", "c")
    assert data.text(data.train.symbols) == "abc\ncab\n"  # type: ignore[attr-defined]
    assert data.text(data.test.symbols) == "ab<unk>\n"  # type: ignore[attr-defined]
    (tmp_path / "program.py").write_text("def f(x):\n    if x:\n\n        return 1\n" * 9)
    kept = load_text(tmp_path / "program.py", "character")
    text = "".join(kept.text(kept[s].symbols) for s in SPLITS)  # type: ignore[attr-defined]
    assert text == (tmp_path / "program.py").read_text()
    (tmp_path / "valid.txt").unlink()
    with pytest.raises(DataError, match=r"is a folder without valid.txt"):
        load_text(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"good line\nbad \xff line\n" * 2,
            r"not valid UTF-8: byte 0xff at offset 14 \(line 2\).*iconv",
        ),
        (b"", r"has no text \(0 bytes\)"),
        (b"\n \n", r"has no text \(3 bytes\)"),
        (b"one\ntwo\n", "has 2 lines with text; at least 3 are needed"),
    ],
)
def test_texts_that_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_text(path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="is not a file"):
        load_text(tmp_path / "other.txt")


def test_a_vocabulary_without_room(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a b c\n" * 5)
    for size in (1, 3):
        with pytest.raises(DataError, match="--vocabulary-size must be at least 4"):
            load_text(path, vocabulary_size=size)
    assert load_text(path, vocabulary_size=4).data_size == 4
