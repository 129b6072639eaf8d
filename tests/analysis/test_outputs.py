"""Tests of files of sequences and of the contents of figures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
import torch
from matplotlib.figure import Figure

from pyro_zf.analysis import (
    as_texts,
    bound_in_training,
    cut,
    interpolation_table,
    kl_by_unit,
    kl_in_training,
    kl_over_images,
    latent_pca,
    lengths_along,
    markdown_cell,
    sampling_against_mean,
    save_sequences,
    shown_steps,
    spectrograms,
    write_hdf5,
)
from pyro_zf.batch import SequenceBatch
from pyro_zf.data import ArrayDataset, DataError, DataSource, Splits, Values


def splits(values: Values, targets: np.ndarray, **options: Any) -> Splits:
    dataset = ArrayDataset(targets, values=values)
    return Splits(dataset, dataset, dataset, DataSource("made up", "", False), **options)


WORDS = splits(
    Values("categorical", 5, start=0), np.zeros((2, 4), dtype=int), vocabulary=("<bos>", "<eos>", "<unk>", "good", "film"),
    joiner=" ", unknown=2, unit="sentence", step_unit="word",
)  # fmt: skip
CHARACTERS = splits(
    Values("categorical", 3), np.zeros((2, 4), dtype=int), vocabulary=("\n", "a", "b"), unit="segment",
    step_unit="character",
)  # fmt: skip
SOUND = splits(
    Values("real", 200, mean=10.0, std=1000.0), np.zeros((2, 80, 200)), sample_rate=16000
)
IMAGES = splits(Values("binary", 28), np.zeros((2, 28, 28), dtype=np.uint8), unit="image")
NUMBERS = splits(Values("real", 5, mean=1.0, std=2.0), np.zeros((2, 6, 5)))


def drawn(figure: Figure) -> bool:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue().startswith(b"\x89PNG")


def test_texts_end_where_they_say(tmp_path: Path) -> None:
    symbols = torch.tensor([[3, 4, 1, 4], [4, 3, 3, 4]])
    assert as_texts(symbols, WORDS) == ["good film", "film good good film"]
    assert as_texts(symbols, WORDS, torch.tensor([1, 2])) == ["good", "film good"]
    (path,) = save_sequences(tmp_path, "samples", {"samples": symbols}, WORDS)
    assert path.read_text() == "good film\nfilm good good film\n"
    rows = {"data": symbols, "again": symbols}
    (path,) = save_sequences(tmp_path, "both", rows, WORDS)
    assert path.read_text().splitlines()[:3] == [
        "data: good film",
        "again: good film",
        "data: film good good film",
    ]
    (path,) = save_sequences(tmp_path, "letters", {"x": symbols.clamp(max=2)}, CHARACTERS)
    assert path.read_text() == "bbab\n" + "-" * 40 + "\nbbbb\n"


def test_texts_in_a_table() -> None:
    assert markdown_cell("a|b *c* <d>\n`e_f`") == r"a\|b \*c\* \<d\> ⏎ \`e\_f\`"
    table = interpolation_table([0.0, 0.25], {"argmax": ["x", "y"], "sampling": ["*", "z"]})
    assert table == [
        "| a | argmax | sampling |", "|---|---|---|", r"| 0.0 | x | \* |", "| 0.2 | y | z |",
    ]  # fmt: skip


def test_texts_in_a_batch() -> None:
    batch = WORDS.batch_of_texts(["good film", "film"])
    assert batch.targets is not None
    assert batch.targets.tolist() == [[3, 4], [4, 0]]
    assert batch.inputs.tolist() == [[0, 3], [0, 0]]
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [2, 1]


def test_a_text_becomes_symbols() -> None:
    assert WORDS.encode("Good  film never").tolist() == [3, 4, 2]
    assert CHARACTERS.encode("ab\n").tolist() == [1, 2, 0]
    with pytest.raises(DataError, match="'c' is not a symbol of made up"):
        CHARACTERS.encode("abc")
    with pytest.raises(DataError, match="empty"):
        WORDS.encode(" ")


def test_sounds_are_restored(tmp_path: Path) -> None:
    t = np.arange(16000) / 16000
    wave = 0.5 * np.sin(2 * np.pi * 1000 * t) * 32768
    frames = torch.from_numpy((wave.reshape(1, 80, 200) - 10.0) / 1000.0)
    paths = save_sequences(tmp_path, "samples", {"samples": frames}, SOUND, torch.tensor([40]))
    assert [p.name for p in paths] == ["samples.png", "samples-spectrograms.png", "samples-1.wav"]
    sound, rate = soundfile.read(tmp_path / "samples-1.wav")
    assert rate == 16000
    assert len(sound) == 40 * 200
    np.testing.assert_allclose(sound, wave[:8000] / 32768, atol=1e-4)
    loud = save_sequences(tmp_path, "loud", {"x y": 1000 * frames}, SOUND)
    assert np.abs(soundfile.read(loud[-1])[0]).max() <= 1.0
    assert loud[-1].name == "loud-x-y-1.wav"


def test_a_spectrogram_shows_the_tone() -> None:
    t = np.arange(16000) / 16000
    figure = spectrograms(
        [[np.sin(2 * np.pi * 2000 * t), np.zeros(16000)], [np.zeros(10)]], ["a", "b"], 16000
    )
    image = figure.axes[0].images[0]
    power = np.asarray(image.get_array())
    low, high = image.get_extent()[2:]
    loudest = np.linspace(low, high, len(power))[power.mean(1).argmax()]
    assert loudest == pytest.approx(2.0, abs=0.1)
    assert not figure.axes[3].axison
    assert drawn(figure)


def test_arrays_in_a_file(tmp_path: Path) -> None:
    path = write_hdf5(
        tmp_path / "x.h5", {"samples": torch.ones(2, 3, 28)}, IMAGES, seed=3, none=None
    )
    with h5py.File(path) as file:
        assert file["samples"].dtype == np.uint8
        assert file["samples"].shape == (2, 3, 28)
        assert dict(file.attrs) == {"data": "made up", "kind": "binary", "seed": 3}
    path = write_hdf5(tmp_path / "x.h5", {"a/b": torch.full((1, 2, 28), 0.5)}, IMAGES)
    with h5py.File(path) as file:
        assert file["a-b"][0, 0, 0] == 0.5, "probabilities are not rounded"
    path = write_hdf5(tmp_path / "y.h5", {"samples": torch.ones(1, 2, 200)}, SOUND)
    with h5py.File(path) as file:
        assert (file["samples"][:] == 1010.0).all()
        assert file.attrs["sample_rate"] == 16000
    path = write_hdf5(tmp_path / "z.h5", {"samples": torch.tensor([[3, 1]])}, WORDS)
    with h5py.File(path) as file:
        words = [file["vocabulary"].asstr()[i] for i in file["samples"][0]]
    assert words == ["good", "<eos>"]


def test_length_of_shown_sequences() -> None:
    assert shown_steps(SOUND) == 160
    assert shown_steps(SOUND, 1.0) == 80
    assert shown_steps(IMAGES) == 28
    assert shown_steps(NUMBERS) == 6
    assert shown_steps(splits(Values("real", 5), np.zeros((2, 300, 5)))) == 200
    batch = SequenceBatch.from_targets(torch.zeros(2, 300, 5), torch.tensor([300, 7]))
    assert cut(batch, NUMBERS).num_steps == 200
    assert cut(batch, NUMBERS, 10).lengths.tolist() == [10, 7]  # type: ignore[union-attr]
    assert cut(batch, IMAGES) is batch
    assert (
        save_sequences(
            Path(), "x", {}, splits(Values("categorical", 3), np.zeros((1, 2), dtype=int))
        )
        == []
    )


def test_pictures_of_numbers(tmp_path: Path) -> None:
    (path,) = save_sequences(tmp_path, "numbers", {"x": torch.rand(3, 6, 5)}, NUMBERS)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_bands() -> None:
    longer = ([10, 20, 40], [2.0, 3.0, 9.0]), ([0, 20], [3.0, 5.0])
    (line,) = kl_in_training({"": {"Ours": longer}}, "nats").axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [10, 20], err_msg="where all are known")
    np.testing.assert_allclose(line.get_ydata(), [3.0, 4.0])
    runs = [([0, 10, 20], [1.0, 2.0, 3.0]), ([0, 20], [3.0, 5.0]), ([], [])]
    figure = kl_in_training({"timit": {"Ours": runs, "empty": []}}, "nats")
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [0, 10, 20])
    np.testing.assert_allclose(line.get_ydata(), [2.0, 3.0, 4.0])
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 1.0
    assert band[:, 1].max() == 5.0
    assert drawn(figure)
    figure = bound_in_training(
        {"a": {"x": [(range(100), [-1e6, *[float(i) for i in range(99)]])]}}, ""
    )
    assert figure.axes[0].get_ylim()[0] > 0, "the scale ignores the first updates"
    for high, scale in ((15.0, "linear"), (1e27, "log")):
        curves = {"learns": [([1, 2], [1.0, 1.0])], "fails": [([1, 2], [high, high])]}
        assert bound_in_training({"a": curves}, "").axes[0].get_yscale() == scale
    many = {f"system {i}": [(range(9), list(range(9)))] for i in range(7)}
    figure = bound_in_training({"a": many, "b": many}, "")
    assert not any(axes.get_legend() for axes in figure.axes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(many)
    assert drawn(sampling_against_mean({"prior": runs[:1], "mean": runs[:2]}, "bits"))


def test_kl_over_the_image() -> None:
    rows = torch.rand(2, 28)
    images = torch.rand(2, 28, 28).round()
    figure = kl_over_images(images, rows)
    shown = np.asarray(figure.axes[2].images[0].get_array())
    np.testing.assert_allclose(shown, rows[0].unsqueeze(-1).expand(28, 28).numpy())
    pixels = torch.rand(1, 784)
    figure = kl_over_images(torch.zeros(1, 784, 1), pixels)
    np.testing.assert_allclose(
        np.asarray(figure.axes[1].images[0].get_array()), pixels.reshape(28, 28)
    )
    assert drawn(figure)
    assert [bar.get_height() for bar in kl_by_unit([1.0, 3.0, 2.0]).axes[0].patches] == [
        3.0,
        2.0,
        1.0,
    ]


def test_principal_components() -> None:
    """For points on a line, the first component has all of the variance and keeps their order."""
    along = torch.linspace(-1, 1, 30)
    z = 20 * torch.randn(1, 4, 3) + along.reshape(30, 1, 1) * torch.randn(1, 4, 3)
    figure = latent_pca(z, np.repeat(["a", "b"], 15), "class")
    assert "100%" in figure.axes[0].get_xlabel()
    first, second = (c.get_offsets()[:, 0] for c in figure.axes[0].collections)
    assert np.concatenate([first, second]).mean() == pytest.approx(0.0, abs=1e-9)
    assert (max(first) < min(second)) or (min(first) > max(second))
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["a", "b"]
    scale = latent_pca(z, along.numpy(), "where")
    assert len(scale.axes) == 2, "continuous labels have a colour bar"
    assert drawn(figure)
    assert drawn(scale)
    with pytest.raises(ValueError, match="needs at least 3 sequences, not 2"):
        latent_pca(z[:2], np.array([1, 2]))


def test_lengths_along_the_way() -> None:
    figure = lengths_along([0.0, 1.0], {"argmax": [[3, 5], [5, 7]]})
    assert figure.axes[0].lines[-1].get_ydata().tolist() == [4.0, 6.0]
    assert drawn(figure)
