"""Blizzard 2013 (King and Karaiskos 2013): 300 hours of speech by one speaker, in half-second sequences.

The corpus is distributed under a licence and cannot be downloaded automatically:
https://www.cstr.ed.ac.uk/projects/blizzard/2013/lessac_blizzard2013/. Any folder or zip archive with
recordings of one speaker can be used instead.
"""

from __future__ import annotations

from pathlib import Path

from pyro_zf.data.audio import Recording, sound_files
from pyro_zf.data.datasets import DataError, DataSource, Splits
from pyro_zf.data.download import find_corpus
from pyro_zf.data.speech import Cutting, by_share, speech_splits
from pyro_zf.data.store import SPLITS, Prepared

__all__ = ["load_blizzard"]

#: Row numbers of the split of Chung et al. 2015, which the papers adopt.
_TRAIN, _VALID, _ALL = 2_040_064, 2_152_704, 2_266_880
SHARES = {
    "train": _TRAIN / _ALL, "valid": (_VALID - _TRAIN) / _ALL, "test": (_ALL - _VALID) / _ALL
}  # fmt: skip
_HOURS = 290
NAMES = ("blizzard", "blizzard2013", "lessac_blizzard2013", "blizzard.zip", "speech")
ADDRESS = "https://www.cstr.ed.ac.uk/projects/blizzard/2013/lessac_blizzard2013/"


def load_blizzard(
    data_dir: Path | str | None = None, protocol: str = "default", segment: int | None = None
) -> Splits:
    """Load half-second sequences of 40 frames with 200 samples each at 16 kHz.

    Recordings with other sampling rates are resampled. The proportions of the splits follow the papers (90,
    5 and 5 %). By default, the data are split by recording, so no recording is in two splits, and each
    sequence lies within one recording. ``"vrnn"`` is the protocol behind the published results (Chung et
    al. 2015): all recordings are concatenated in the order of their names, and each split is a contiguous
    part of the result.

    Args:
        data_dir: folder to search first. It contains the recordings, or a folder or archive with them.
        protocol: ``"default"`` or ``"vrnn"``.
        segment: number of frames per sequence; 40 by default.

    Raises:
        DataError: if there are no recordings.
    """
    if protocol not in ("default", "vrnn"):
        raise DataError(f"--protocol {protocol}: Blizzard supports default and vrnn")
    files = sound_files(
        find_corpus(data_dir, "Blizzard", NAMES, f"it is available at {ADDRESS}"), "recordings"
    )
    cut = Cutting(segment or 40, across=protocol == "vrnn", keep_rest=False)
    stretches = None
    if protocol == "vrnn":
        ends = (0.0, SHARES["train"], SHARES["train"] + SHARES["valid"], float("inf"))
        stretches = {s: (ends[i], ends[i + 1]) for i, s in enumerate(SPLITS)}

    def assign() -> dict[str, list[Recording]]:
        if protocol == "vrnn":
            return {"train": files.files, "valid": [], "test": []}
        return by_share(files, SHARES, seed=2013)

    def describe(stored: Prepared) -> DataSource:
        hours = sum(stored.notes["samples"].values()) / 16000 / 3600
        complete = hours > _HOURS
        name = (
            "Blizzard 2013"
            if complete
            else f"{hours:.2f} hours of speech in place of Blizzard 2013"
        )
        return DataSource(
            name + (", protocol vrnn" if stretches else ""),
            f"{files.root}, split 90/5/5 by " + ("position" if stretches else "recording"),
            comparable=complete and protocol == "vrnn" and segment in (None, 40), key=stored.key,
        )  # fmt: skip

    return speech_splits(
        "blizzard", files, assign, dict.fromkeys(SPLITS, cut), describe, stretches=stretches,
        unit="half-second sequence" if segment in (None, 40) else "sequence", protocol=protocol,
    )  # fmt: skip
