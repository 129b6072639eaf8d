"""Sequences of frames of raw audio samples, shared by TIMIT, Blizzard and the user's own sound files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from pyro_zf.data.audio import Cutter, Recording, SoundFiles, announced
from pyro_zf.data.covariates import ConditionedDataset, one_hot
from pyro_zf.data.datasets import DataError, DataSource, Splits
from pyro_zf.data.progress import progress_bar
from pyro_zf.data.store import SPLITS, Prepared, StoredDataset, Writer, key_of, opened, prepared
from pyro_zf.data.values import Values

__all__ = ["FRAME_SIZE", "Cutting", "by_share", "speech_splits"]

#: Number of samples per frame in all published work on raw speech.
FRAME_SIZE = 200


@dataclass(frozen=True)
class Cutting:
    """How the samples of a split are cut into sequences.

    Args:
        segment: number of frames per sequence, or None for whole recordings.
        across: whether sequences may extend across the boundaries of recordings.
        keep_rest: whether the last sequence of a recording may have fewer frames.
    """

    segment: int | None = None
    across: bool = False
    keep_rest: bool = True


def speech_splits(
    name: str,
    files: SoundFiles,
    assign: Callable[[], Mapping[str, list[Recording]]],
    cuttings: Mapping[str, Cutting],
    describe: Callable[[Prepared], DataSource],
    unit: str,
    sample_rate: int = 16000,
    frame_size: int = FRAME_SIZE,
    groups: Callable[[Recording], str] | None = None,
    stretches: Mapping[str, tuple[float, float]] | None = None,
    protocol: Any = "default",
    conditioned: bool = False,
) -> Splits:
    """Prepare recordings, or load them from the cache if they have been prepared before.

    Args:
        name: name of the data set.
        files: the recordings.
        assign: function that returns the recordings of each split. It is called only if the data are not in
            the cache, and must depend on the files and the other arguments only.
        cuttings: maps each split to the way that its recordings are cut.
        describe: function that describes the prepared data.
        unit: name of a sequence.
        sample_rate: sampling rate of the sequences in Hz.
        frame_size: number of samples per frame.
        groups: function that returns the speaker of a recording, for counting speakers.
        stretches: if given, "train" contains all recordings, which are concatenated, and each split is the
            part between two fractions of the total length.
        protocol: identifies the assignment of recordings in the key of the cache.
        conditioned: whether the covariates of each sequence are its speaker, as a one-hot vector over the
            speakers of the training set. The vector of other speakers is zero.

    Raises:
        DataError: if no recording of a split can be used.
    """
    options = {
        "protocol": protocol, "cuttings": {k: repr(v) for k, v in cuttings.items()}, "sample_rate": sample_rate,
        "frame_size": frame_size, "stretches": dict(stretches or {}),
    }  # fmt: skip
    if groups:  # the speaker of each sequence is stored
        options["speakers"] = True
    raw = Values("real", frame_size)

    def build(file: h5py.File) -> dict[str, Any]:
        assigned = assign()
        writer = Writer(file, raw, np.int16)
        tallies = {split: _Tally() for split in SPLITS}
        speakers: dict[str, list[str]] = {split: [] for split in SPLITS}
        read, total = 0, max(sum(_expected(f, sample_rate) for f in assigned["train"]), 1)
        with progress_bar(name, "file", sum(map(len, assigned.values()))) as bar:
            for split in SPLITS:
                cutter = Cutter(frame_size, cuttings[split].segment, cuttings[split].keep_rest)
                for recording in assigned[split]:
                    blocks = files.blocks(recording, sample_rate)
                    for sequence in tallies[split].cut(recording, blocks, cutter, cuttings[split]):
                        owner = _owner(stretches, read / total) if stretches else split
                        writer.add(owner, sequence)
                        if groups and len(sequence):
                            speakers[owner].append(groups(recording))
                        read += sequence.size
                    bar.update()
                for sequence in cutter.finish():
                    writer.add(split, sequence)
                    if groups and len(sequence):
                        speakers[split].append(groups(assigned[split][-1]))
        if not any(tally.samples for tally in tallies.values()):
            raise files.none_usable()
        if not any(levels.peak for levels in files.levels.values()):
            raise DataError(
                f"{files.root}: all {len(files.levels)} sound files are digital silence"
            )
        for split in SPLITS:
            if not writer.statistics[split].num_sequences:
                raise DataError(
                    f"{files.root}: no sequence is left for the {split} split "
                    f"({len(assigned[split])} recordings, all skipped or too short); use more "
                    "recordings or a shorter --segment"
                )
        writer.close()
        if not writer.statistics["train"].varies:
            raise DataError(
                f"{files.root}: all samples of the training set are the same: there is nothing to learn"
            )
        if groups:
            for split in SPLITS:
                names = np.array(speakers[split], dtype="S16")
                file.create_dataset(f"{split}/speakers", data=names)
        return {
            "recordings": {s: len(tallies[s].used) for s in SPLITS},
            "groups": {s: len(set(map(groups, tallies[s].used))) for s in SPLITS} if groups else None,
            "samples": {s: tallies[s].samples for s in SPLITS},
            "skipped": files.skipped,
            "remarks": files.remarks(sample_rate),
            "cut_off": sum(tally.samples for tally in tallies.values()) - read,
        }  # fmt: skip

    stored = prepared(name, key_of(files.fingerprint(), options), build)
    mean, std = stored.statistics("train", raw).moments()
    values = Values("real", frame_size, mean, std)
    datasets = {split: stored.dataset(split, values) for split in SPLITS}
    findings = list(_findings(stored.notes, datasets, values, unit, sample_rate, not stretches))
    names: tuple[str, ...] | None = None
    parts: dict[str, Any] = dict(datasets)
    if conditioned:
        with opened(stored.path) as file:
            spoken = {s: [x.decode() for x in file[f"{s}/speakers"][...]] for s in SPLITS}
        names = tuple(sorted(set(spoken["train"])))
        for split in SPLITS:
            parts[split] = ConditionedDataset(datasets[split], one_hot(spoken[split], names))
        others = len(set(spoken["valid"] + spoken["test"]) - set(names))
        findings.append(
            f"conditioned on {len(names)} speakers; {others} other speakers in validation and test have "
            "zero vectors"
        )
    return Splits.of(
        parts,
        source=describe(stored), unit=unit, step_unit="frame", sample_rate=sample_rate,
        findings=tuple(findings), covariate_names=names,
    )  # fmt: skip


@dataclass
class _Tally:
    """Counts of what has been read for a split."""

    samples: int = 0
    used: list[Recording] = field(default_factory=list)

    def cut(
        self, recording: Recording, blocks: Iterable[np.ndarray], cutter: Cutter, cutting: Cutting
    ) -> Iterator[np.ndarray]:
        """Cut a recording into sequences."""
        for i, block in enumerate(blocks):
            if i == 0:
                self.used.append(recording)
            self.samples += len(block)
            yield from cutter.push(block)
        if not cutting.across:
            yield from cutter.finish()


def _owner(stretches: Mapping[str, tuple[float, float]], share: float) -> str:
    return next((s for s, (first, last) in stretches.items() if first <= share < last), "test")


def _findings(
    notes: Mapping[str, Any], datasets: Mapping[str, StoredDataset], values: Values, unit: str,
    sample_rate: int, whole: bool,
) -> Iterator[str]:  # fmt: skip
    """Summary of the data in lines. ``whole`` means that each recording belongs to one split."""
    samples = sum(notes["samples"].values())
    yield (
        f"{sum(notes['recordings'].values())} recordings, {samples:,} samples "
        f"({samples / sample_rate / 60:.1f} minutes at {sample_rate} Hz)"
    )
    if notes["skipped"]:
        first = next(iter(notes["skipped"].values()))
        yield f"{len(notes['skipped'])} files were skipped; the first: {first}"
    yield from notes["remarks"]
    if notes["cut_off"]:
        yield (
            f"{notes['cut_off']:,} samples at the ends of recordings fill no frame or segment and were "
            "dropped"
        )
    for split, data in datasets.items():
        origin = f" from {notes['recordings'][split]} recordings" if whole else ""
        if notes["groups"]:
            number = notes["groups"][split]
            origin += f" of {number} speaker{'s' if number != 1 else ''}"
        yield (
            f"{split}: {len(data):,} {unit}s of {data.steps.min()} to {data.steps.max()} frames"
            f"{origin}, {int(data.steps.sum()):,} frames of {values.size} samples"
        )
    yield (
        f"16-bit samples of the training set: mean {values.mean:.4f}, standard deviation "
        f"{values.std:.3f}; likelihoods refer to samples normalised by these"
    )


def by_share(
    sounds: SoundFiles, shares: Mapping[str, float], seed: int = 0
) -> dict[str, list[Recording]]:
    """Split recordings at random, in proportion to their size in bytes, with at least one in each split.

    Recordings that cannot be used are removed first, so that no split consists of such recordings only.

    Raises:
        DataError: if there are fewer usable recordings than splits.
    """
    files = sounds.usable()
    if len(files) < len(shares):
        raise DataError(
            f"{len(files)} sound files cannot be split into {', '.join(shares)}: at least "
            f"{len(shares)} are needed"
        )
    order = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    total = sum(f.size for f in files)
    parts: dict[str, list[Recording]] = {}
    small = [name for name in shares if name != "train"]
    for name in small:
        part = [order.pop()]
        while (
            len(order) > len(small)
            and sum(f.size for f in part) + order[-1].size / 2 < shares[name] * total
        ):
            part.append(order.pop())
        parts[name] = part
    parts["train"] = order
    return {name: sorted(parts[name], key=lambda f: f.name) for name in SPLITS}


def _expected(file: Recording, sample_rate: int) -> int:
    """Number of samples according to the header of a file, converted to a sampling rate."""
    try:
        frames, rate = announced(file)
    except DataError:
        return 0
    return frames * sample_rate // rate
