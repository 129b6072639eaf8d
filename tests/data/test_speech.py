"""Tests of speech data: file discovery, reading, cutting and splits."""

from __future__ import annotations

import io
import math
import re
import string
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_zf.data import DataError, load_blizzard, load_timit, load_wav, make_batches
from pyro_zf.data.audio import Cutter, read_sound, sound_blocks, sound_files
from pyro_zf.data.blizzard import SHARES
from tests.data.conftest import tone, write_sounds

SPLITS = ("train", "valid", "test")


def stored(splits, split):  # type: ignore[no-untyped-def]
    data = splits[split]
    return [data[i] for i in range(len(data))]


# TIMIT


def test_the_sample_of_timit(real_data: Path, cache: Path) -> None:
    data = load_timit(real_data)
    frames = {s: int(data[s].lengths.sum()) for s in SPLITS}
    assert sum(len(data[s]) for s in SPLITS) == 160
    assert sum(frames.values()) == 39_123
    assert data.findings[0] == "160 recordings, 7,841,548 samples (8.2 minutes at 16000 Hz)"
    speakers = re.findall(r"of (\d+) speakers?,", " ".join(data.findings))
    assert sum(map(int, speakers)) == 16, "no speaker is in two splits"
    assert not data.source.comparable
    batch = next(iter(make_batches(data.train, 200)))
    assert batch.targets is not None
    assert batch.mask is not None
    real = batch.targets[batch.mask].double()
    assert abs(real.mean()) < 1e-3
    assert abs(real.std() - 1) < 1e-3
    assert data.marginal_nats("train") == pytest.approx(
        frames["train"] / len(data.train) * 200 * 0.5 * (1 + np.log(2 * np.pi)), rel=1e-6
    )
    everything = np.concatenate([np.concatenate(stored(data, s)).ravel() for s in SPLITS])
    assert everything.std() == pytest.approx(546.2, abs=1), (
        "the deviation of all samples, including those of incomplete frames, is 546.2"
    )
    again = load_timit(real_data / "timit_nltk_sample")
    assert again.source.key == data.source.key, "data are prepared only once"
    assert len(list((cache / "prepared").glob("timit-*.h5"))) == 1


def test_the_protocol_of_the_published_numbers(real_data: Path, cache: Path) -> None:
    data = load_timit(real_data, protocol="srnn")
    assert data.train.lengths is None
    assert data.train.num_steps == 40
    assert data.valid.num_steps == 40
    assert data.test.lengths is not None
    assert len(data.test) == 40, "whole utterances"
    default = load_timit(real_data)
    assert sorted(data.test.lengths) == sorted(default.test.lengths), "the same test set"
    # 5 % of 120 training utterances. Segments run across utterances, so almost no samples are lost.
    used = [int(f.split(" from ")[1].split()[0]) for f in data.findings if " from " in f]
    assert used == [114, 6, 40]
    assert len(data.train) * 40 <= 39_123


def test_chunks_of_the_released_code_are_cut_within_utterances(
    real_data: Path, cache: Path
) -> None:
    whole, cut = load_timit(real_data), load_timit(real_data, segment=40)
    assert cut.train.num_steps == 40
    utterances = stored(whole, "train")
    chunks = [u[i : i + 40] for u in utterances for i in range(0, len(u), 40)]
    assert len(chunks) == len(cut.train)
    for ours, theirs in zip(stored(cut, "train"), chunks, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sorted(cut.test.lengths) == sorted(whole.test.lengths)


def write_timit(root: Path, layout: str) -> Path:
    """Write speakers with two utterances each, in one of the common layouts."""
    for split, speakers in {"train": ["fcjf0", "mabc1", "fxyz0"], "test": ["mdef0"]}.items():
        for speaker in speakers:
            folder = f"{split}/dr1/{speaker}"
            folder = folder.upper() if layout != "lower" else folder
            (root / folder).mkdir(parents=True)
            for i, name in enumerate(("sa1", "sx37")):
                wave = tone(0.2 + 0.05 * i, pitch=200)
                suffix = {"upper": ".WAV", "lower": ".wav", "kaggle": ".WAV"}[layout]
                stem = name.upper() if layout != "lower" else name
                path = root / folder / (stem + suffix)
                soundfile.write(path, wave, 16000, format="NIST", subtype="PCM_16")
                if layout == "kaggle":  # a converted copy beside the original
                    soundfile.write(str(path) + ".wav", wave, 16000)
    return root


@pytest.mark.parametrize("layout", ["upper", "lower", "kaggle"])
@pytest.mark.parametrize("above", ["", "TIMIT", "lisa/Timit", "x/data"])
def test_any_layout_of_timit(layout: str, above: str, tmp_path: Path, cache: Path) -> None:
    write_timit(tmp_path / "data" / above, layout)
    data = load_timit(
        tmp_path / "data" / above.split("/")[0] if "/" in above else tmp_path / "data"
    )
    assert [len(data[s]) for s in SPLITS] == [4, 2, 2]
    assert "3 speakers" not in data.findings[1]
    assert not data.source.comparable


def test_the_counts_of_the_whole_corpus(tmp_path: Path, cache: Path) -> None:
    """Counts for as many speakers as in LDC93S1, with ten utterances and with one of two frames each."""
    content = io.BytesIO()
    soundfile.write(content, tone(0.025), 16000, format="NIST", subtype="PCM_16")
    letters = string.ascii_uppercase
    for number in (1, 10):
        for n in range(630):
            speaker = f"{'FM'[n % 2]}{letters[n % 26]}{letters[n // 26]}X{n % 3}"
            part = "TRAIN" if n < 462 else "TEST"
            folder = tmp_path / str(number) / "TIMIT" / part / f"DR{n % 8 + 1}" / speaker
            folder.mkdir(parents=True)
            for i in range(number):
                (folder / f"S{'AIX'[i % 3]}{i}.WAV").write_bytes(content.getvalue())
    data = load_timit(tmp_path / "10", protocol="srnn", segment=2)
    assert [len(data[s]) for s in SPLITS] == [4389, 231, 1680]
    assert data.source.name == "TIMIT, protocol srnn"
    assert not data.source.comparable, "segments differ from the published ones"
    data = load_timit(tmp_path / "1")
    assert [len(data[s]) for s in SPLITS] == [439, 23, 168], "23 of 462 speakers"


def test_a_broken_timit_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"no TIMIT in .*LDC93S1.*--data-dir"):
        load_timit()
    with pytest.raises(DataError, match=r"no utterances of TIMIT in .* \(found nothing\)"):
        load_timit(tmp_path)
    root = write_timit(tmp_path / "timit", "upper")
    (root / "TEST").rename(root / "other")
    with pytest.raises(DataError, match="has a folder TRAIN, but no TEST"):
        load_timit(tmp_path)
    (root / "other").rename(root / "TEST")
    (root / "TEST/DR1/MDEF0").rename(root / "TEST/DR1/FCJF0")
    with pytest.raises(DataError, match="speaker fcjf0 is in both TRAIN and TEST"):
        load_timit(tmp_path)
    write_sounds(tmp_path / "b" / "timit")
    with pytest.raises(DataError, match=r"none is named like those of TIMIT .*--dataset wav"):
        load_timit(tmp_path / "b")
    with pytest.raises(DataError, match="TIMIT supports default and srnn"):
        load_timit(tmp_path, protocol="vrnn")


# Blizzard


def test_one_speaker(
    real_data: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_blizzard(real_data)
    assert data.findings[0].startswith("554 recordings, 23,560,780 samples")
    sizes = {s: len(data[s]) for s in SPLITS}
    assert sum(sizes.values()) == 2_661, "half-second sequences within files"
    for split, size in sizes.items():
        assert size / 2661 == pytest.approx(SHARES[split], abs=0.01)
        assert data[split].lengths is None
        assert data[split].num_steps == 40
    across = load_blizzard(real_data, protocol="vrnn")
    assert sum(len(across[s]) for s in SPLITS) == 2_945, "across files"
    assert len(across.train) == math.ceil(2945 * 2_040_064 / 2_266_880)
    sizes = {s: len(across[s]) / 2945 for s in SPLITS}
    assert sizes == pytest.approx(SHARES, abs=1e-3)
    with pytest.raises(DataError, match="Blizzard supports default and vrnn"):
        load_blizzard(real_data, protocol="srnn")
    monkeypatch.setenv("PYRO_ZF_DATA", str(real_data))
    write_sounds(tmp_path / "mine", number=5, seconds=2.0)
    assert load_blizzard(tmp_path / "mine").findings[0].startswith("5 recordings")
    assert load_blizzard().findings[0].startswith("554 recordings")


def test_only_a_given_folder_is_searched(
    real_data: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRO_ZF_DATA", str(real_data))
    write_sounds(tmp_path / "mine", number=5, seconds=2.0)
    with pytest.raises(DataError, match="none is named like those of TIMIT"):
        load_timit(tmp_path / "mine")
    assert "160 utterances" in load_timit().source.name
    (tmp_path / "empty").mkdir()
    for load in (load_blizzard, load_timit):
        with pytest.raises(DataError, match=r"in .*empty \(found nothing\)"):
            load(tmp_path / "empty")


def test_no_blizzard(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"no Blizzard in .*lessac_blizzard2013.*--data-dir"):
        load_blizzard()


# A user's own sounds


def test_mixed_sounds(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "sounds"
    write_sounds(folder / "deep" / "er", number=6)
    both = np.stack([tone(1.0, 44100), 0 * tone(1.0, 44100)], axis=1)
    soundfile.write(folder / "stereo.flac", both, 44100)
    soundfile.write(folder / "slow.OGG", tone(0.7, 8000), 8000, format="OGG")
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT"):
        soundfile.write(folder / f"{subtype}.WAV", tone(0.5), 16000, subtype=subtype)
    (folder / "notes.txt").write_text("not a sound")
    data = load_wav(folder, segment=20)
    assert data.sample_rate == 16000, "the most frequent rate"
    assert data.findings[0].startswith("12 recordings")
    assert data.unit == "sequence"
    assert data.num_steps == 20
    files = {f.name: f for f in sound_files(folder).files}
    exact = read_sound(files["deep/er/tone1.wav"], 16000)
    assert np.abs(exact / 32768 - tone(1.0, 16000, 220.0)).max() < 1e-4
    for subtype, tolerance in {
        "PCM_U8": 0.01,
        "PCM_24": 1e-4,
        "PCM_32": 1e-4,
        "FLOAT": 1e-4,
    }.items():
        read = read_sound(files[f"{subtype}.WAV"], 16000)
        assert np.abs(read / 32768 - tone(0.5)).max() < tolerance
    mixed = read_sound(files["stereo.flac"], 16000)  # averaged and resampled
    inner = slice(1000, 15000)
    assert len(mixed) == 16000
    assert np.abs(mixed / 32768 - 0.5 * tone(1.0))[inner].max() < 1e-3


@settings(deadline=None, max_examples=30)
@given(block=st.integers(1000, 40_000), rate=st.sampled_from([8000, 16000, 22050, 44100]))
def test_blocks_join_without_a_seam(
    block: int, rate: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    soundfile.write(folder / "a.wav", tone(1.5, rate), rate)
    (file,) = sound_files(folder).files
    joined = np.concatenate(list(sound_blocks(file, 16000, block)))
    whole = read_sound(file, 16000)
    assert abs(len(joined) - 24_000) <= 1
    np.testing.assert_allclose(joined, whole, atol=1)
    inner = slice(500, 23_000)
    assert np.abs(joined[inner] / 32768 - tone(1.5)[inner]).max() < 2e-3


@settings(deadline=None)
@given(
    parts=st.lists(st.integers(0, 30), max_size=8), frame=st.integers(1, 4),
    segment=st.one_of(st.none(), st.integers(1, 5)), keep=st.booleans(),
)  # fmt: skip
def test_cutting_loses_less_than_it_says(
    parts: list[int], frame: int, segment: int | None, keep: bool
) -> None:
    samples = np.arange(sum(parts), dtype=np.int16)
    cutter = Cutter(frame, segment, keep)
    out = (
        [s for part in np.split(samples, np.cumsum(parts)[:-1]) for s in cutter.push(part)]
        if parts
        else []
    )
    assert all(s.shape == (segment, frame) for s in out)
    out += list(cutter.finish())
    joined = np.concatenate([s.ravel() for s in out]) if out else samples[:0]
    np.testing.assert_array_equal(joined, samples[: len(joined)])
    lost = len(samples) - len(joined)
    assert lost < frame if keep else segment is None or lost < frame * segment
    assert list(cutter.finish()) == []


def test_archives(tmp_path: Path, cache: Path) -> None:
    write_sounds(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "sounds.zip", "w") as archive:
        for path in (tmp_path / "a").iterdir():
            archive.write(path, f"inside/{path.name}")
    data = load_wav(tmp_path / "sounds.zip")
    assert data.findings[0].startswith("4 recordings, 64,000 samples")
    other = load_wav(tmp_path / "a")
    for split in SPLITS:
        for ours, theirs in zip(stored(data, split), stored(other, split), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_prepared_anew_when_files_change(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sounds(tmp_path / "a", number=5)
    first = load_wav(folder)
    soundfile.write(folder / "tone0.wav", 0.1 * tone(1.0), 16000)
    assert load_wav(folder).source.key != first.source.key
    keys = [
        load_wav(folder, **options).source.key
        for options in ({}, {"segment": 7}, {"frame_size": 50}, {"sample_rate": 8000})
    ]
    assert len(set(keys)) == 4
    assert load_wav(folder, frame_size=50).data_size == 50
    monkeypatch.chdir(tmp_path)
    assert load_wav("a").source.key == keys[0], "independent of the working directory"


def test_timit_is_split_anew_when_its_table_of_speakers_comes(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "timit"
    for speaker in ("fabc0", "fdef0", "mghi0", "mjkl0", "mxyz0"):
        write_sounds(root / f"dr1-{speaker}", number=2, seconds=0.3)
        for path in (root / f"dr1-{speaker}").iterdir():
            path.rename(path.with_name(path.name.replace("tone", "sx")))
    before = load_timit(tmp_path)
    table = "; comments\nABC0 F 1 TRN x\nDEF0 F 1 TST x\nGHI0 M 1 TST x\nJKL0 M 1 TRN x\nXYZ0 M 1 TRN x\n"
    (root / "SPKRINFO.TXT").write_text(table)
    after = load_timit(tmp_path)
    assert before.source.key != after.source.key
    assert [len(after[s]) for s in SPLITS] == [4, 2, 4]


def test_a_damaged_archive(tmp_path: Path, cache: Path) -> None:
    write_sounds(tmp_path / "a", number=5)
    with zipfile.ZipFile(tmp_path / "sounds.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "a").iterdir()):
            archive.write(path, path.name)
        place = archive.getinfo("tone2.wav").header_offset
    content = bytearray((tmp_path / "sounds.zip").read_bytes())
    content[place + 100 : place + 200] = b"\xff" * 100
    (tmp_path / "sounds.zip").write_bytes(content)
    data = load_wav(tmp_path / "sounds.zip")
    assert data.findings[0].startswith("4 recordings")
    assert "1 files were skipped; the first: tone2.wav" in data.findings[1]
