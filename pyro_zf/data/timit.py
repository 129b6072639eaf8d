"""TIMIT (Garofolo et al. 1993, LDC93S1): 6,300 utterances by 630 speakers, as frames of raw samples.

The corpus is licensed and cannot be downloaded automatically. All layouts distributed by the LDC are
supported: upper or lower case, folders or a zip archive, NIST SPHERE or RIFF. The sample distributed by NLTK,
with 160 utterances by 16 speakers, is supported too.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np

from pyro_zf.data.audio import Recording, SoundFiles, sound_files
from pyro_zf.data.datasets import DataError, DataSource, Splits
from pyro_zf.data.download import find_corpus
from pyro_zf.data.speech import Cutting, speech_splits
from pyro_zf.data.store import Prepared

__all__ = ["load_timit"]

_SPEAKER = re.compile(r"[fm][a-z]{3}\d")
_UTTERANCE = re.compile(r"s[aix]\d+")
#: Proportions in the full corpus: 168 of 630 speakers for test, 231 of 4,620 utterances for validation.
_TEST, _VALID = 168 / 630, 0.05

NAMES = ("timit", "TIMIT_LDC93S1", "LDC93S1", "timit_nltk_sample", "timit.zip")


def load_timit(
    data_dir: Path | str | None = None,
    protocol: str = "default",
    segment: int | None = None,
    condition_on: str | None = None,
) -> Splits:
    """Load TIMIT as sequences of frames with 200 samples each at 16 kHz.

    The training and test sets are those of the corpus, identified by its folders or by ``spkrinfo.txt``. If a
    copy provides neither, such as the sample of NLTK, about a quarter of the speakers is held out for test.
    By default, sequences are whole utterances and validation is by speaker. ``"srnn"`` is the protocol behind
    the published results (Fraccaro et al. 2016): 5 % of the training utterances are used for validation,
    regardless of the speaker; training and validation use segments of 40 frames that extend across
    utterances; test uses whole utterances.

    Args:
        data_dir: folder to search first. It contains the corpus, or a folder or archive with it.
        protocol: ``"default"`` or ``"srnn"``.
        segment: number of frames per training sequence. By default, utterances are not cut; if they are, the
            last segment of an utterance may be shorter. The code of the authors trains on 40 frames, which is
            the default of ``"srnn"``.
        condition_on: ``"speaker"`` to use the speakers of the training set as covariates.

    Raises:
        DataError: if TIMIT is not found or is invalid.
    """
    if protocol not in ("default", "srnn"):
        raise DataError(f"--protocol {protocol}: TIMIT supports default and srnn")
    if condition_on not in (None, "speaker"):
        raise DataError(f"--condition-on {condition_on}: TIMIT supports speaker only")
    files = _utterances(
        find_corpus(
            data_dir, "TIMIT", NAMES, "it is licensed (https://catalog.ldc.upenn.edu/LDC93S1)"
        )
    )
    test = _test_speakers(files)
    by_speaker: dict[str, list[Recording]] = {}
    for file in files.files:
        by_speaker.setdefault(_speaker(file), []).append(file)
    others = sorted(set(by_speaker) - test)
    rng = np.random.default_rng(1234)
    if protocol == "srnn":
        pool = [f for speaker in others for f in by_speaker[speaker]]
        order = rng.permutation(len(pool))
        number = max(round(_VALID * len(pool)), 1)
        valid, train = (
            [pool[i] for i in sorted(part)] for part in (order[:number], order[number:])
        )
        cut = Cutting(segment or 40, across=True, keep_rest=False)
        cuttings = {"train": cut, "valid": cut, "test": Cutting()}
    else:
        number = max(round(_VALID * len(others)), 1)
        chosen = {others[i] for i in rng.permutation(len(others))[:number]}
        train = [f for s in others if s not in chosen for f in by_speaker[s]]
        valid = [f for s in sorted(chosen) for f in by_speaker[s]]
        cuttings = {"train": Cutting(segment), "valid": Cutting(), "test": Cutting()}
    assigned = {
        "train": train,
        "valid": valid,
        "test": [f for s in sorted(test) for f in by_speaker[s]],
    }
    complete = len(files.files) == 6300 and len(assigned["test"]) == 1680

    def describe(stored: Prepared) -> DataSource:
        name = "TIMIT" if complete else f"a sample of TIMIT ({len(files.files)} utterances)"
        how = (
            f"segments of {segment or 40} frames for training"
            if protocol == "srnn"
            else "validation by speaker"
        )
        detail = f"{files.root}, {len(by_speaker)} speakers, {how}"
        return DataSource(
            name + (", protocol srnn" if protocol == "srnn" else ""), detail,
            comparable=complete and protocol == "srnn" and segment in (None, 40), key=stored.key,
        )  # fmt: skip

    return speech_splits(
        "timit", files, lambda: assigned, cuttings, describe, "utterance", groups=_speaker,
        protocol=[protocol, {split: [f.name for f in part] for split, part in assigned.items()}],
        conditioned=condition_on is not None,
    )  # fmt: skip


def _utterances(root: Path) -> SoundFiles:
    """Find the utterances without duplicates, since some copies include converted files as well."""
    files = sound_files(root, "utterances of TIMIT")
    once: dict[tuple[str, ...], Recording] = {}
    for file in files.files:
        stem = file.parts[-1].split(".")[0]
        if not _UTTERANCE.fullmatch(stem) or not _speaker(file):
            continue
        key = (*file.parts[:-1], stem)
        if key not in once or len(file.name) < len(once[key].name):
            once[key] = file
    if not once:
        raise DataError(
            f"{root} contains {len(files.files)} sound files, but none is named like those of TIMIT "
            "(TRAIN/DR1/FCJF0/SA1.WAV): use --dataset wav for your own sound files"
        )
    return SoundFiles(list(once.values()), files.root)


def _speaker(file: Recording) -> str:
    """Speaker according to the folder (``FCJF0`` or ``dr1-fcjf0``), or the empty string."""
    if len(file.parts) < 2:
        return ""
    name = file.parts[-2].rsplit("-", 1)[-1]
    return name if _SPEAKER.fullmatch(name) else ""


def _test_speakers(files: SoundFiles) -> set[str]:
    speakers = sorted({_speaker(f) for f in files.files})
    test = {_speaker(f) for f in files.files if "test" in f.parts[:-2]}
    train = {_speaker(f) for f in files.files if "train" in f.parts[:-2]}
    if test and train:
        if both := test & train:
            raise DataError(f"{files.root}: speaker {min(both)} is in both TRAIN and TEST")
        return test
    if test or train:
        missing, there = ("TRAIN", "TEST") if test else ("TEST", "TRAIN")
        raise DataError(f"{files.root} has a folder {there}, but no {missing} with utterances")
    noted = _noted_use(files)
    test = {s for s in speakers if noted.get(s[1:]) == "tst"}
    if test and len(test) < len(speakers) - 1:
        return test
    if len(speakers) < 3:
        raise DataError(f"{files.root} has {len(speakers)} speakers; at least 3 are needed")
    number = max(round(_TEST * len(speakers)), 1)
    return {speakers[i] for i in np.random.default_rng(1234).permutation(len(speakers))[:number]}


def _noted_use(files: SoundFiles) -> dict[str, str]:
    """Map the initials of each speaker to ``trn`` or ``tst`` according to ``spkrinfo.txt``, if it exists."""
    text = b""
    if files.root.is_dir():
        found = next((p for p in files.root.rglob("*") if p.name.lower() == "spkrinfo.txt"), None)
        text = found.read_bytes() if found else b""
    else:
        with zipfile.ZipFile(files.root) as archive:
            names = [n for n in archive.namelist() if n.lower().endswith("spkrinfo.txt")]
            text = archive.read(names[0]) if names else b""
    use = {}
    for line in text.decode("latin-1").splitlines():
        fields = line.split()
        if len(fields) > 3 and not line.startswith(";"):
            use[fields[0].lower()] = fields[3].lower()
    return use
