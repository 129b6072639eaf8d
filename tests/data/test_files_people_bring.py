"""Files as people bring them: other scales, encodings and states; what the loaders say about them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile

from pyro_zf.data import DataError, Splits, load_hdf5, load_imdb, load_text, load_wav
from tests.data.conftest import tone

pytestmark = pytest.mark.usefixtures("cache")
RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(40, 8, 5))


def array(path: Path, **content: Any) -> Path:
    with h5py.File(path, "w", libver="latest") as file:
        for name, values in content.items():
            file[name] = values
    return path


def sounds(
    folder: Path, samples: Any, subtype: str = "PCM_16", number: int = 6, rate: int = 8000
) -> Path:
    folder.mkdir()
    for i in range(number):
        soundfile.write(folder / f"{i}.wav", samples, rate, subtype=subtype)
    return folder


def says(data: Splits, text: str) -> bool:
    return any(text in finding for finding in data.findings)


# Arrays


def test_a_value_far_from_the_rest_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = REAL.copy()
    x[1, 7, 2] = 1e30
    x[3, :4] = -999.0
    for _ in range(2):  # prepared, and from the cache
        caplog.clear()
        load_hdf5(
            array(tmp_path / "a.h5", x=x) if not (tmp_path / "a.h5").exists() else tmp_path / "a.h5"
        )
        assert "x[1] holds 1e+30 at step 7 (1 such values)" in caplog.text
        assert "x[3] holds -999 at step 0 (20 such values)" in caplog.text
        assert len(caplog.records) == 2
    caplog.clear()
    load_hdf5(array(tmp_path / "b.h5", x=REAL))
    assert caplog.text == ""


@pytest.mark.parametrize("value", [1e200, -1e39])
def test_a_value_beyond_the_range(value: float, tmp_path: Path) -> None:
    x = REAL.copy()
    x[2, 3, 1] = value
    with pytest.raises(
        DataError, match=r"x\[2\] holds \S+ at step 3 is beyond the range of 32-bit"
    ):
        load_hdf5(array(tmp_path / "a.h5", x=x))


def test_a_numpy_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", REAL)
    with pytest.raises(DataError, match=r"a\.npy is not an HDF5 file; h5py\.File"):
        load_hdf5(tmp_path / "a.npy")


def test_constants(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all values of x are 0\.7: there is nothing to learn"):
        load_hdf5(array(tmp_path / "a.h5", x=np.full((40, 8, 5), 0.7, "f4")))
    x = REAL.copy()
    x[..., [1, 3]] = 2.5
    data = load_hdf5(array(tmp_path / "b.h5", x=x))
    assert says(
        data, "2 of 5 values per step are constant in the training data, the first at index 1"
    )


def test_counts(tmp_path: Path) -> None:
    x = RNG.poisson(4.0, (40, 8, 3))
    data = load_hdf5(array(tmp_path / "a.h5", x=x))
    assert (data.kind, data.values.high) == ("counts", x.max())
    assert says(data, f"kind counts (inferred: integers from 0 to {x.max()}), 3 values per step")
    assert data.marginal_name == "independent geometric counts"
    rows = data.train.rows  # type: ignore[attr-defined]
    means = x[rows].reshape(-1, 3).mean(0)
    q = (means * len(rows) * 8 + 1) / (means * len(rows) * 8 + len(rows) * 8 + 2)
    test = x[data.test.rows]  # type: ignore[attr-defined]
    expected = -(np.log1p(-q) + test * np.log(q)).sum() / len(test)
    assert data.marginal_nats("test") == pytest.approx(expected)
    as_floats = load_hdf5(array(tmp_path / "b.h5", x=x.astype(float)))
    assert as_floats.kind == "real"
    assert says(as_floats, "whole numbers that are stored as floats: --kind counts")
    assert load_hdf5(tmp_path / "b.h5", kind="counts").kind == "counts"
    with pytest.raises(DataError, match="has no counts, which are whole numbers from 0"):
        load_hdf5(array(tmp_path / "c.h5", x=x - 1), kind="counts")


def test_what_is_left_out_of_a_file_is_said(tmp_path: Path) -> None:
    lengths = np.array([0, 0, *[8] * 38])
    data = load_hdf5(
        array(tmp_path / "a.h5", x=REAL, lengths=lengths, labels=np.arange(40)), key="x"
    )
    assert says(data, "2 sequences of length 0 were left out")
    assert says(data, "1 other arrays of the file are not read as sequences: labels")


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    """Another file of the same name, size and times."""
    path = array(tmp_path / "a.h5", x=REAL)
    first = load_hdf5(path)
    stat = path.stat()
    other = array(tmp_path / "b.h5", x=REAL * 3)
    assert other.stat().st_size == stat.st_size
    os.replace(other, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = load_hdf5(path)
    np.testing.assert_allclose(second.values.std, 3 * np.asarray(first.values.std))


def test_values_in_other_files(tmp_path: Path) -> None:
    """External links and virtual arrays belong to the key; what is missing is named."""
    array(tmp_path / "source.h5", x=REAL)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink("source.h5", "/x")
    first = load_hdf5(path, key="x")
    assert not says(first, "links to other files were not followed")
    array(tmp_path / "source.h5", x=REAL * 1000)
    second = load_hdf5(path, key="x")
    np.testing.assert_allclose(second.values.std, 1000 * np.asarray(first.values.std))
    layout = h5py.VirtualLayout((80, 8, 5), "f8")
    layout[:40] = h5py.VirtualSource(tmp_path / "source.h5", "x", (40, 8, 5))
    layout[40:] = h5py.VirtualSource(tmp_path / "nowhere.h5", "x", (40, 8, 5))
    with h5py.File(tmp_path / "b.h5", "w", libver="latest") as file:
        file.create_virtual_dataset("x", layout)
    with pytest.raises(DataError, match=r"a virtual array, and \S+nowhere\.h5, which holds a part"):
        load_hdf5(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["train"] = h5py.ExternalLink("nowhere.h5", "/x")
    with pytest.raises(DataError, match="has no array 'train'"):
        load_hdf5(tmp_path / "c.h5", key="train")


def test_marks_of_missing_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = REAL.copy()
    x[3, :4], x[5, 0, 0] = -999.0, -998.0  # the second one does not hide the first
    load_hdf5(array(tmp_path / "a.h5", x=x))
    assert "x[3] holds -999 at step 0 (20 such values)" in caplog.text
    counts = RNG.poisson(4.0, (40, 8, 3))
    counts[2, 1, 0] = 65535
    load_hdf5(array(tmp_path / "b.h5", x=counts))
    assert "x[2] holds 65535 at step 1" in caplog.text
    counts[2, 1, 0] = -1
    negative = load_hdf5(array(tmp_path / "c.h5", x=counts))
    assert says(negative, "kind real (inferred; all values are whole numbers, from -1 to")
    counts[2, 1, 0] = 2**40
    assert load_hdf5(array(tmp_path / "d.h5", x=counts)).kind == "real"
    with pytest.raises(DataError, match="whole numbers from 0 to 16777215"):
        load_hdf5(tmp_path / "d.h5", kind="counts")


def test_the_split_is_said_as_it_is(tmp_path: Path) -> None:
    assert "split 1/1/1 at random" in load_hdf5(array(tmp_path / "a.h5", x=REAL[:3])).source.detail
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert "split 1/1/1 by line" in load_text(path).source.detail
    assert (
        "split 1/1/1 by file"
        in load_wav(sounds(tmp_path / "a", tone(1.0, 8000), number=3)).source.detail
    )


def test_reviews_that_differ_in_their_texts_alone(tmp_path: Path) -> None:
    vocabularies = []
    for word in ("good", "evil"):
        folder = tmp_path / word / "aclImdb"
        for k in range(120):
            path = folder / ("train", "test")[k % 2] / ("pos", "neg")[k // 2 % 2] / f"{k}_7.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"The film number {k:03d} was {word} . I saw it .", encoding="utf-8")
            os.utime(path, (1_600_000_000, 1_600_000_000))
        vocabularies.append(set(load_imdb(tmp_path / word).vocabulary or ()))
    assert [word in vocabularies[0] for word in ("good", "evil")] == [True, False]
    assert [word in vocabularies[1] for word in ("good", "evil")] == [False, True]


def test_a_file_that_another_program_writes(tmp_path: Path) -> None:
    program = (
        "import sys, os, h5py\n"
        "file = h5py.File(sys.argv[1], 'r+', libver='latest')\n"
        "if sys.argv[2] == 'swmr': file.swmr_mode = True\n"
        "file.flush(); print('open', flush=True); sys.stdin.read(1); os._exit(1)\n"
    )
    for mode in ("plain", "swmr"):
        path = array(tmp_path / f"{mode}.h5", x=REAL)
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path), mode], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            with pytest.raises(
                DataError, match=r"is open (for writing )?in another program"
            ) as error:
                load_hdf5(path)
            process.kill()
        assert "damaged" not in str(error.value)
    with pytest.raises(DataError, match=r"left open by one that crashed.*h5clear -s swmr\.h5"):
        load_hdf5(path)


def test_links_and_filters(tmp_path: Path) -> None:
    array(tmp_path / "other.h5", x=REAL)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = h5py.ExternalLink("other.h5", "/x")
        file["y"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(DataError, match="no arrays of its own, only 2 links to other files"):
        load_hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        dataset = file.create_dataset("x", REAL.shape, "f8", chunks=REAL.shape, compression="gzip")
        dataset[...] = REAL
    content = (tmp_path / "b.h5").read_bytes()
    name = content.index(b"deflate")
    broken = bytearray(content)
    broken[name - 8 : name - 6] = (32015).to_bytes(2, "little")  # zstd, which h5py does not have
    (tmp_path / "c.h5").write_bytes(bytes(broken))
    with pytest.raises(
        DataError, match=r"a filter that is not installed here.*h5repack -f GZIP=4 c\.h5"
    ):
        load_hdf5(tmp_path / "c.h5")


# Sounds


def test_amplitudes_beyond_the_range(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (32767 * tone(1.0, 8000)).astype("f4")
    with pytest.raises(DataError, match=r"outside -1\.\.1, where they would be clipped.*by 32768"):
        load_wav(sounds(tmp_path / "a", whole, "FLOAT"))
    assert caplog.text.count("skipped: ") == 3, "the first three, not all"
    loud = tone(1.0, 8000) * 2.2  # half the samples of a sine of amplitude 1.1 are within the range
    data = load_wav(sounds(tmp_path / "b", loud.astype("f4"), "FLOAT"))
    assert says(data, "6 of 6 files have samples outside -1..1")


def test_16_bit_values_in_files_of_32_bits(tmp_path: Path) -> None:
    small = (32767 * tone(1.0, 8000)).astype("i4")
    with pytest.raises(
        DataError, match=r"become silent as 16 bits: its samples reach 2\^-17 of the range"
    ):
        load_wav(sounds(tmp_path / "a", small, "PCM_32"))
    right = load_wav(sounds(tmp_path / "b", small * 65536, "PCM_32"))
    same = load_wav(sounds(tmp_path / "c", small.astype("i2")))
    assert right.values.std == pytest.approx(same.values.std, rel=1e-3)


def test_silence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 6 sound files are digital silence"):
        load_wav(sounds(tmp_path / "a", np.zeros(8000)))
    folder = sounds(tmp_path / "b", tone(1.0, 8000))
    soundfile.write(folder / "silent.wav", np.zeros(8000), 8000)
    assert says(load_wav(folder), "1 of 7 files are digital silence")
    quiet = load_wav(sounds(tmp_path / "c", tone(1.0, 8000) / 2000))
    assert says(quiet, "of 32768 levels: are the sounds scaled as they should be?")
    with pytest.raises(DataError, match="all samples of the training set are the same"):
        load_wav(sounds(tmp_path / "d", np.full(8000, 0.25)))


def test_headers_that_contradict_the_file(tmp_path: Path) -> None:
    folder = sounds(tmp_path / "a", tone(1.0, 8000))
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        content[4:8] = (36 + 3200).to_bytes(4, "little")
        content[40:44] = (3200).to_bytes(4, "little")  # 1,600 of 8,000 samples
        path.write_bytes(content)
    assert says(load_wav(folder), "6 of 6 files are longer than their headers say; 76,800 bytes")
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        content[4:8] = content[40:44] = bytes(4)  # never filled in
        path.write_bytes(content)
    with pytest.raises(DataError, match="but no samples according to its header"):
        load_wav(folder)


def test_folders_that_differ_in_their_sounds_alone(tmp_path: Path) -> None:
    deviations = []
    for name, volume in (("a", 0.2), ("b", 1.0)):
        folder = sounds(tmp_path / name, volume * tone(1.0, 8000))
        for path in folder.iterdir():
            os.utime(path, (1_600_000_000, 1_600_000_000))
        deviations.append(load_wav(folder).values.std)
    assert deviations[1] == pytest.approx(5 * np.asarray(deviations[0]), rel=1e-3)


def test_what_is_converted_or_left_out_is_said(tmp_path: Path) -> None:
    folder = sounds(tmp_path / "a", tone(1.03, 8000))
    soundfile.write(folder / "stereo.wav", np.stack([tone(1.0, 16000)] * 2, 1), 16000)
    (folder / "notes.txt").write_text("notes", encoding="utf-8")
    (folder / "cover.jpg").write_bytes(b"jpg")
    (folder / "broken.wav").write_bytes(b"RIFF")
    data = load_wav(folder)
    for line in (
        "not read: 2 files (1 .jpg, 1 .txt)", "the channels of 1 of 7 files were averaged",
        "resampled to 8000 Hz: 1 of 16000 Hz", "1 files were skipped; the first: broken.wav",
        "samples at the ends of recordings fill no frame or segment and were dropped",
    ):  # fmt: skip
        assert says(data, line), data.findings
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in [*folder.glob("?.wav"), folder / "notes.txt"]:
            archive.write(path, path.name)
        archive.writestr(".hidden.wav", b"RIFF")
    assert says(load_wav(tmp_path / "a.zip"), "not read: 2 files (1 hidden, 1 .txt)")


# Texts

LINES = "".join(f"the boat number {i} likes the old tree .\n" for i in range(60))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_byte_order_marks(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(LINES.encode(encoding))
    (tmp_path / "b.txt").write_bytes(LINES.encode())
    found, expected = load_text(tmp_path / "a.txt"), load_text(tmp_path / "b.txt")
    assert found.vocabulary == expected.vocabulary


@pytest.mark.parametrize("order", ["LE", "BE"])
def test_utf_16_without_a_mark(order: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(LINES.encode(f"utf-16-{order.lower()}"))
    with pytest.raises(
        DataError, match=f"NUL bytes, so it is not plain text.*iconv -f UTF-16{order} -t UTF-8"
    ):
        load_text(tmp_path / "a.txt")


def test_other_encodings(tmp_path: Path) -> None:
    chinese = "一二三四 五六七八\n" * 40
    (tmp_path / "a.txt").write_bytes(chinese.encode("utf-16-le"))
    with pytest.raises(DataError, match="iconv -f UTF-16LE"):
        load_text(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(LINES.encode() + b"\0" + LINES.encode())
    with pytest.raises(DataError, match=r"contains 1 NUL bytes, so it is not plain text; file -i"):
        load_text(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_bytes(chinese.encode("gb18030"))
    with pytest.raises(DataError, match="from its encoding, which file -i may name"):
        load_text(tmp_path / "c.txt")
    (tmp_path / "d.pdf").write_bytes(b"%PDF-1.4\n" + LINES.encode())
    with pytest.raises(DataError, match=r"is a PDF, not a text file.*pdftotext d\.pdf"):
        load_text(tmp_path / "d.pdf", level="character")


def test_other_line_separators_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a\fb c\x85d e\u2028f\r\n".encode() * 40)
    data = load_text(path, level="character", segment=10)
    assert data.vocabulary is not None
    assert {"\f", "\x85", "\u2028", "\n"} <= set(data.vocabulary)
    assert "\r" not in data.vocabulary
    assert says(load_text(path), "train: 36 lines")


def test_compressed_texts(tmp_path: Path) -> None:
    for name, content, how in (
        ("a.gz", gzip.compress(LINES.encode()), "compressed by gzip.*gunzip -k a.gz"),
        ("a.bz2", bz2.compress(LINES.encode()), "compressed by bzip2.*bunzip2 -k a.bz2"),
        ("a.xz", lzma.compress(LINES.encode()), "compressed by xz.*unxz -k a.xz"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=how):
            load_text(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", LINES)
    with pytest.raises(DataError, match=r"a zip archive.*unzip a\.zip"):
        load_text(tmp_path / "a.zip")


def test_a_stream_is_split_by_symbols(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(LINES.replace("\n", " "), encoding="utf-8")  # one line, as text8 is
    data = load_text(path, level="character", segment=20)
    sizes = [len(data[s].symbols) for s in ("train", "valid", "test")]  # type: ignore[attr-defined]
    whole = len(LINES) + 1
    assert sum(sizes) == whole
    assert sizes[1] == sizes[2] == round(0.05 * whole)
    assert "split 2,151/120/120 by character" in data.source.detail
    joined = "".join(data.text(data[s].symbols) for s in ("train", "valid", "test"))  # type: ignore[attr-defined]
    assert joined.rstrip("\n") == LINES.replace("\n", " ")
    words = load_text(path, segment=10)
    sizes = [len(words[s].symbols) for s in ("train", "valid", "test")]  # type: ignore[attr-defined]
    assert sizes[1] == sizes[2] == round(0.05 * sum(sizes))
    path.write_text("ab", encoding="utf-8")
    assert load_text(path, level="character").source
    path.write_text("a b", encoding="utf-8")
    with pytest.raises(DataError, match="has 1 lines with text; at least 3 are needed"):
        load_text(path)


def test_long_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(("boat " * 300 + "\n") * 30, encoding="utf-8")
    with pytest.raises(DataError, match=r"30 of 30 lines have more than 200 words.*--segment 50"):
        load_text(path)
    assert load_text(path, segment=50).unit == "segment"
    path.write_text(LINES + "\n\n" + "boat " * 300 + "\n" + LINES, encoding="utf-8")
    data = load_text(path)
    assert says(data, "1 lines of more than 200 words were left out (--segment N")
    assert says(data, "2 blank lines were left out")
