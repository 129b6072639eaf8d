"""Sound files in folders and archives, read as 16-bit mono at a given sampling rate."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16

from pyro_zf.data.datasets import DataError
from pyro_zf.data.store import digest_of

__all__ = [
    "SUFFIXES",
    "Cutter",
    "Levels",
    "Recording",
    "SoundFiles",
    "announced",
    "read_sound",
    "sound_blocks",
    "sound_files",
]

log = logging.getLogger(__name__)

#: If all files together have fewer bytes than this, each is read completely before they are split.
THOROUGH = 256 * 2**20

#: Number of bytes up to which a file of an archive is unpacked, in memory.
LARGEST = 2**30

#: Suffixes of sound files; upper and lower case are equivalent.
SUFFIXES = (".wav", ".flac", ".ogg", ".sph", ".mp3")
#: Formats that libsndfile may detect for each suffix. The .wav files of TIMIT are in NIST SPHERE format.
_FORMATS: dict[str, tuple[str, ...]] = {
    ".wav": ("WAV", "WAVEX", "RF64", "W64", "NIST"),
    ".flac": ("FLAC",),
    ".ogg": ("OGG",),
    ".sph": ("NIST",),
    ".mp3": ("MP3", "MPEG"),
}


@dataclass(frozen=True)
class Recording:
    """A sound file, given by a folder or an archive and the path inside it."""

    name: str
    root: Path
    size: int
    archived: bool = False
    checksum: int | None = None

    def open(self) -> Any:
        """Open the file for reading bytes."""
        if not self.archived:
            return (self.root / self.name).open("rb")
        if self.size > LARGEST:
            raise DataError(
                f"{self.name} has {self.size / 2**30:.1f} GB in the archive: unpack {self.root} first"
            )
        with zipfile.ZipFile(self.root) as archive:
            return io.BytesIO(archive.read(self.name))

    @property
    def parts(self) -> tuple[str, ...]:
        """Components of the path, in lower case."""
        return tuple(part.lower() for part in Path(self.name).parts)

    def digest(self) -> str | int:
        """Hash of the content; the checksum that an archive stores.

        Raises:
            DataError: if the file cannot be read.
        """
        return digest_of(self.root / self.name) if self.checksum is None else self.checksum


@dataclass
class Levels:
    """Statistics of the samples of a file, collected while it is read.

    Args:
        samples: number of samples.
        clipped: number of samples outside -1..1.
        peak: largest amplitude, relative to the range.
        channels, rate: of the file.
        behind: number of bytes after the end of the data according to the header.
    """

    samples: int = 0
    clipped: int = 0
    peak: float = 0.0
    channels: int = 1
    rate: int = 0
    behind: int = 0

    def add(self, samples: np.ndarray) -> None:
        """Add a block of samples, as floating-point or 16-bit numbers."""
        whole = samples.dtype == np.int16
        size = np.abs(samples.astype(np.int32) if whole else samples)
        self.samples += size.size
        self.peak = max(self.peak, float(size.max(initial=0)) / (32768 if whole else 1))
        if not whole:
            self.clipped += int((size > 1.0).sum())

    def check(self, name: str) -> None:
        """Reject amplitudes that 16 bits cannot hold.

        Raises:
            DataError: if more than half of the samples would be clipped, or all would become zero.
        """
        if self.clipped > self.samples / 2:
            scale = "; divide them by 32768" if 1024 < self.peak <= 32768 else ""
            raise DataError(
                f"{name} has {100 * self.clipped / self.samples:.0f} % of its samples outside -1..1, where "
                f"they would be clipped: they reach {self.peak:g}{scale}"
            )
        if 0 < self.peak * 32768 <= 0.5:
            raise DataError(
                f"{name} would become silent as 16 bits: its samples reach 2^{math.log2(self.peak):.0f} of "
                "the range, so they are probably 16-bit values in a file of more bits; shift them up"
            )


@dataclass
class SoundFiles:
    """The sound files of a folder or archive, and a record of those that could not be read.

    Args:
        files: the sound files, sorted by name.
        root: the folder or archive.
        skipped: maps the names of skipped files to the reason; it is filled while files are read.
    """

    files: list[Recording]
    root: Path
    skipped: dict[str, str] = field(default_factory=dict)
    others: str = ""
    levels: dict[str, Levels] = field(default_factory=dict)

    def fingerprint(self) -> list[Any]:
        """Names, sizes and hashes of the contents, which identify the source of prepared data.

        Raises:
            DataError: if a file cannot be read.
        """
        if sum(file.size for file in self.files) > 2 * 2**30:
            log.info("reading %s to see whether it has changed", self.root)
        return [(f.name, f.size, f.digest()) for f in self.files]

    def remarks(self, sample_rate: int) -> list[str]:
        """Lines with counts of what was left out or converted."""
        seen = list(self.levels.values())
        lines = [f"not read: {self.others}"] if self.others else []
        silent = sum(x.peak == 0 for x in seen)
        if silent:
            lines.append(f"{silent} of {len(seen)} files are digital silence")
        if clipped := [x for x in seen if x.clipped]:
            share = sum(x.clipped for x in clipped) / sum(x.samples for x in seen)
            lines.append(
                f"{len(clipped)} of {len(seen)} files have samples outside -1..1, {100 * share:.3g} % of all, "
                "which were clipped"
            )
        if mixed := [x for x in seen if x.channels > 1]:
            lines.append(f"the channels of {len(mixed)} of {len(seen)} files were averaged")
        if converted := Counter(x.rate for x in seen if x.rate != sample_rate):
            rates = ", ".join(f"{n} of {rate} Hz" for rate, n in converted.most_common(3))
            lines.append(f"resampled to {sample_rate} Hz: {rates}")
        if short := [x for x in seen if x.behind]:
            total = sum(x.behind for x in short)
            lines.append(
                f"{len(short)} of {len(seen)} files are longer than their headers say; {total:,} bytes behind were "
                "not read"
            )
        loud = max((x.peak for x in seen), default=0.0)
        if 0 < loud < 2**-9:
            lines.append(
                f"the largest amplitude is {loud * 32768:.0f} of 32768 levels: are the sounds scaled as they "
                "should be?"
            )
        return lines

    def blocks(self, file: Recording, sample_rate: int) -> Iterator[Int16[np.ndarray, " samples"]]:
        """Iterate over the samples of a file. A file that cannot be read completely is skipped and noted."""
        levels = Levels()
        try:
            blocks = sound_blocks(file, sample_rate, levels=levels)
            head = list(islice(blocks, 16))
            for _ in blocks:  # a long file is first read to the end to check that it is complete
                head = []
        except DataError as error:
            self._skip(file, error)
            return
        self.levels[file.name] = levels
        yield from head or sound_blocks(file, sample_rate)

    def common_rate(self, at_most: int = 200) -> int:
        """The most common sampling rate, estimated on at most about ``at_most`` files.

        Raises:
            DataError: if no file can be read.
        """
        rates: Counter[int] = Counter()
        for file in self.files[:: max(len(self.files) // at_most, 1)]:
            try:
                with _sound(file) as sound:
                    rates[sound.samplerate] += 1
            except DataError:
                continue
        if not rates:
            self.usable()
            raise self.none_usable()
        return rates.most_common(1)[0][0]

    def usable(self) -> list[Recording]:
        """Return the files that can be read, and record the others.

        The header of each file is checked. Small collections and files with samples of 32 bits or more are
        read completely.

        Raises:
            DataError: if no file can be read.
        """
        thorough = sum(file.size for file in self.files) < THOROUGH
        for file in self.files:
            try:
                with _sound(file) as sound:
                    whole = thorough or sound.subtype in ("FLOAT", "DOUBLE", "PCM_32")
                    rate = sound.samplerate
                for _ in sound_blocks(file, rate) if whole else ():
                    pass
            except DataError as error:
                self._skip(file, error)
        files = [file for file in self.files if file.name not in self.skipped]
        if not files:
            raise self.none_usable()
        return files

    def _skip(self, file: Recording, error: DataError) -> None:
        self.skipped[file.name] = str(error)
        if len(self.skipped) <= 3:
            log.warning("skipped: %s", error)
        elif len(self.skipped) == 4:
            log.warning("more files were skipped; their number is given at the end")

    def none_usable(self) -> DataError:
        """Create the error for the case that no file can be used."""
        why = next(iter(self.skipped.values()), "it has no samples")
        return DataError(
            f"no sound file in {self.root} can be used ({len(self.files)} found); the first: {why}"
        )


def sound_files(root: Path, what: str = "sound files") -> SoundFiles:
    """Find all sound files below a folder or in a zip archive.

    A folder may also contain a single zip archive instead of sound files.

    Raises:
        DataError: if there are no sound files.
    """
    if root.is_dir():
        files = []
        there: Counter[str] = Counter()
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            name = path.relative_to(root).as_posix()
            if any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
                there["hidden"] += 1
            elif path.suffix.lower() in SUFFIXES:
                files.append(Recording(name, root, path.stat().st_size))
            else:
                there[path.suffix.lower() or "without suffix"] += 1
        others = _counted(there)
        archives = sorted(p for p in root.iterdir() if p.suffix.lower() == ".zip")
        if not files and archives:
            if len(archives) > 1:
                raise DataError(
                    f"{root} has {len(archives)} zip archives and no sound files: specify one of them"
                )
            return sound_files(archives[0], what)
        if not files:
            raise DataError(
                f"no {what} in {root} (found {others or 'nothing'}); supported suffixes are "
                f"{', '.join(SUFFIXES)}"
            )
        return SoundFiles(files, root, others=others)
    if root.suffix.lower() == ".zip" and root.is_file():
        try:
            with zipfile.ZipFile(root) as archive:
                members = sorted(archive.infolist(), key=lambda m: m.filename)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{root} is damaged or not a zip archive ({error})") from error
        files, there = [], Counter()
        for m in members:
            suffix = Path(m.filename).suffix.lower()
            if m.is_dir():
                continue
            if any(part.startswith((".", "__MACOSX")) for part in m.filename.split("/")):
                there["hidden"] += 1
            elif suffix in SUFFIXES:
                files.append(Recording(m.filename, root, m.file_size, True, m.CRC))
            else:
                there[suffix or "without suffix"] += 1
        if not files:
            raise DataError(
                f"no {what} in {root} (found {_counted(there) or 'nothing'}); supported suffixes are "
                f"{', '.join(SUFFIXES)}"
            )
        return SoundFiles(files, root, others=_counted(there))
    raise DataError(f"{root} is neither a folder nor a zip archive of {what}")


def _counted(there: Counter[str]) -> str:
    """Number of files, and of the most common kinds; empty without files."""
    if not there:
        return ""
    kinds = ", ".join(f"{n} {s}" for s, n in there.most_common(3))
    return f"{there.total()} files ({kinds}{', ..' if len(there) > 3 else ''})"


def read_sound(file: Recording, sample_rate: int) -> Int16[np.ndarray, " samples"]:
    """Read all samples of a file; see :func:`sound_blocks`."""
    return np.concatenate(list(sound_blocks(file, sample_rate)))


def sound_blocks(
    file: Recording, sample_rate: int, block: int = 2**20, levels: Levels | None = None
) -> Iterator[Int16[np.ndarray, " samples"]]:
    """Iterate over the samples of a file in blocks, with channels averaged.

    The file is resampled if its rate differs from ``sample_rate``. Floating-point samples and samples of 8,
    24 or 32 bits are converted to 16 bits. Statistics of the amplitudes are added to ``levels``.

    Raises:
        DataError: if the file is not a sound file, is truncated, or contains samples that are not finite or
            that 16 bits cannot hold.
    """
    import soxr

    levels = Levels() if levels is None else levels
    with _sound(file) as sound:
        announced, rate, read = sound.frames, sound.samplerate, 0
        levels.channels, levels.rate = sound.channels, rate
        levels.behind = _behind(file)
        exact = sound.subtype == "PCM_16" and sound.channels == 1 and rate == sample_rate
        stream = (
            None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, "float32")
        )
        while read < announced:
            try:
                part = sound.read(block, dtype="int16" if exact else "float32")
            except RuntimeError as error:  # soundfile's errors
                raise DataError(f"{file.name} cannot be read: {_reason(error)}") from error
            if not len(part):
                raise DataError(f"{file.name} is truncated: it has {read} of {announced} samples")
            read += len(part)
            if exact:
                levels.add(part)
                yield part
                continue
            if not np.isfinite(part).all():
                raise DataError(f"{file.name} contains samples that are not finite")
            mono = part.mean(axis=1) if part.ndim == 2 else part
            levels.add(mono)
            if stream is not None:
                mono = stream.resample_chunk(mono, last=read >= announced)
            yield np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)
        if not read and file.size > 1024:
            raise DataError(
                f"{file.name} has {file.size} bytes, but no samples according to its header: the program that "
                "wrote it did not finish; repair the header, for example with sox --ignore-length"
            )
        if not read:
            raise DataError(f"{file.name} has no samples")
        levels.check(file.name)


def announced(file: Recording) -> tuple[int, int]:
    """Read the number of samples per channel and the sampling rate from the header.

    Raises:
        DataError: if the file is not a sound file.
    """
    with _sound(file) as sound:
        return sound.frames, sound.samplerate


@contextlib.contextmanager
def _sound(file: Recording) -> Iterator[Any]:
    """Open a sound file and check its header."""
    import soundfile

    if not file.size:
        raise DataError(f"{file.name} is empty (0 bytes)")
    try:
        opened = file.open()
    except (
        OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError
    ) as error:  # fmt: skip
        raise DataError(f"{file.name} cannot be opened: {error}") from error
    with opened:
        head = opened.read(8)
        opened.seek(0)
        try:
            sound = soundfile.SoundFile(opened)
        except RuntimeError as error:
            looks = "; it looks like an MP3" if _is_mp3(head) else ""
            raise DataError(f"{file.name} is not a sound file: {_reason(error)}{looks}") from error
        with sound:
            suffix = Path(file.name).suffix.lower()
            if sound.format not in _FORMATS.get(suffix, (sound.format,)):
                raise DataError(
                    f"{file.name} is {sound.format} despite its name: rename or convert it"
                )
            _check_riff(file, head)
            yield sound


def _check_riff(file: Recording, head: bytes) -> None:
    """Reject truncated RIFF files, which libsndfile reads without an error."""
    told = int.from_bytes(head[4:8], "little") + 8
    # Programs that write to a pipe leave the size at 0 or at the maximum.
    if head[:4] == b"RIFF" and 8 < told < 0xFFFFFF00 and file.size < told - 8:
        raise DataError(f"{file.name} is truncated: it has {file.size} of {told} bytes")


def _behind(file: Recording) -> int:
    """Number of bytes of a RIFF file after the end of the data that its header gives, if it gives one."""
    with file.open() as opened:
        head = opened.read(8)
    told = int.from_bytes(head[4:8], "little") + 8
    known = head[:4] == b"RIFF" and 8 < told < 0xFFFFFF00
    return max(file.size - told - told % 2, 0) if known else 0


def _is_mp3(head: bytes) -> bool:
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)


def _reason(error: Exception) -> str:
    return str(error).replace("\n", " ").rsplit(": ", 1)[-1].rstrip(".")


class Cutter:
    """Cuts samples that arrive in blocks into sequences of frames.

    Args:
        frame_size: number of samples per frame.
        segment: number of frames per sequence, or None to return all samples as one sequence.
        keep_rest: whether to keep a last sequence with fewer frames. Samples that do not fill a frame are
            always dropped.

    Example:
        >>> cutter = Cutter(frame_size=2, segment=2)
        >>> [s.tolist() for s in cutter.push(np.arange(7, dtype=np.int16))]
        [[[0, 1], [2, 3]]]
        >>> [s.tolist() for s in cutter.finish()]
        [[[4, 5]]]
    """

    def __init__(self, frame_size: int, segment: int | None = None, keep_rest: bool = True) -> None:
        self.frame_size, self.segment, self.keep_rest = frame_size, segment, keep_rest
        self._rest: list[np.ndarray] = []

    def push(self, samples: Int16[np.ndarray, " samples"]) -> Iterator[np.ndarray]:
        """Add samples, and return the sequences that are now complete."""
        self._rest.append(samples)
        if self.segment is None:
            return
        size = self.segment * self.frame_size
        if sum(map(len, self._rest)) < size:
            return
        joined = np.concatenate(self._rest)
        number = len(joined) // size
        self._rest = [joined[number * size :]]
        yield from joined[: number * size].reshape(number, self.segment, self.frame_size)

    def finish(self) -> Iterator[np.ndarray]:
        """Return the remaining frames if they are to be kept, and reset the cutter for a new recording."""
        joined = np.concatenate(self._rest) if self._rest else np.zeros(0, np.int16)
        self._rest = []
        number = len(joined) // self.frame_size
        if number and self.keep_rest:
            yield joined[: number * self.frame_size].reshape(number, self.frame_size)
