"""A user's own sounds: a folder, nested as it may be, of mixed rates, lengths and channels."""

from __future__ import annotations

from pathlib import Path

from pyro_zf.data.audio import sound_files
from pyro_zf.data.datasets import DataError, DataSource, Splits
from pyro_zf.data.speech import FRAME_SIZE, Cutting, by_share, speech_splits
from pyro_zf.data.store import SPLITS, Prepared

__all__ = ["load_wav"]


def load_wav(
    folder: Path | str,
    segment: int | None = None,
    sample_rate: int | None = None,
    frame_size: int = FRAME_SIZE,
) -> Splits:
    """Sounds as sequences of frames: wav, flac, ogg, mp3 and NIST SPHERE.

    Channels are averaged, other sampling rates converted. A file that cannot be read is skipped, and
    said to be. Files are dealt out whole: 90 % for training, 5 % each for validation and test.

    Args:
        folder: of the files, or a zip archive.
        segment: frames a sequence, 40 by default; the last of a file may have fewer.
        sample_rate: in Hz; by default that of most files.
        frame_size: samples a frame.

    Raises:
        DataError: if there are no sounds, or none can be read.
    """
    if (segment is not None and segment < 1) or frame_size < 1:
        raise DataError(f"--segment {segment} and --frame-size {frame_size} must be at least 1")
    files = sound_files(Path(folder).expanduser())
    rate = sample_rate or files.common_rate()
    shares = {"train": 0.9, "valid": 0.05, "test": 0.05}

    def describe(stored: Prepared) -> DataSource:
        detail = (
            f"{sum(stored.notes['recordings'].values())} files at {rate} Hz, split 90/5/5 by file"
        )
        return DataSource(
            f"sounds of {files.root.name}", f"{files.root}, {detail}", False, stored.key
        )

    return speech_splits(
        "wav", files, lambda: by_share(files, shares), dict.fromkeys(SPLITS, Cutting(segment or 40)),
        describe, "sequence", rate, frame_size,
    )  # fmt: skip
