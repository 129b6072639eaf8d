"""The user's own sound files: nested folders with mixed sampling rates, lengths and numbers of channels."""

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
    """Load sound files (wav, flac, ogg, mp3 and NIST SPHERE) as sequences of frames.

    Channels are averaged, and all files are converted to one sampling rate. Files that cannot be read are
    skipped and reported. The data are split by file: 90 % for training, 5 % each for validation and test.

    Args:
        folder: folder with the files, or a zip archive.
        segment: number of frames per sequence; 40 by default. The last sequence of a file may be shorter.
        sample_rate: sampling rate in Hz. Default: the most common rate among the files.
        frame_size: number of samples per frame.

    Raises:
        DataError: if there are no sound files, or none can be read.
    """
    if (segment is not None and segment < 1) or frame_size < 1:
        raise DataError(f"--segment {segment} and --frame-size {frame_size} must be at least 1")
    files = sound_files(Path(folder).expanduser())
    rate = sample_rate or files.common_rate()
    shares = {"train": 0.9, "valid": 0.05, "test": 0.05}

    def describe(stored: Prepared) -> DataSource:
        numbers = stored.notes["recordings"]
        detail = f"{sum(numbers.values())} files at {rate} Hz, split {'/'.join(map(str, numbers.values()))} by file"
        return DataSource(
            f"sounds of {files.root.name}", f"{files.root}, {detail}", False, stored.key
        )

    return speech_splits(
        "wav", files, lambda: by_share(files, shares), dict.fromkeys(SPLITS, Cutting(segment or 40)),
        describe, "sequence", rate, frame_size,
    )  # fmt: skip
