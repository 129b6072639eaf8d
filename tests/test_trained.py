"""Training with models and data of one's own, and trained models in Python."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pyro_zf
from pyro_zf import RNN, VRNN, SequenceBatch, ZForcing
from pyro_zf.cli import main
from pyro_zf.data import ArrayDataset, DataError, DataSource, Splits, Values, splits_of
from pyro_zf.infer import batch_bounds
from pyro_zf.models import SequenceModel
from pyro_zf.training import TrainConfig, UsageError, load_run, read_metrics, resolve, train

pytestmark = pytest.mark.usefixtures("single_precision", "unchecked")

SIZES: dict[str, Any] = {"hidden_size": 8, "latent_size": 2, "mlp_size": 8}
BITS = (torch.rand(60, 6, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
LENGTHS = torch.arange(60) % 6 + 1


def config(folder: Path, **options: Any) -> TrainConfig:
    settings = {
        "max_updates": 6,
        "num_figures": 0,
        "log_interval": 2,
        "valid_interval": 3,
        **options,
    }
    return TrainConfig(output_dir=folder / "run", **settings)


def ragged(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples]), torch.tensor([n for _, n in samples])


def as_batches(samples: list[Tensor]) -> SequenceBatch:
    return SequenceBatch.from_targets(torch.stack(samples))


def own_splits() -> Splits:
    values = Values("real", 3)
    array = np.random.default_rng(0).normal(size=(30, 5, 3)).astype(np.float32)
    parts = [ArrayDataset(array[a:b], None, None, values) for a, b in ((0, 20), (20, 25), (25, 30))]
    return Splits(*parts, DataSource("made up", "", False))


SOURCES: dict[str, Any] = {
    "tensor": lambda: DataLoader(BITS, batch_size=7),
    "lengths": lambda: DataLoader(
        list(zip(BITS, LENGTHS.tolist(), strict=True)), batch_size=7, collate_fn=ragged
    ),
    "covariates": lambda: DataLoader(
        TensorDataset(BITS, LENGTHS, torch.randn(60, 2)), batch_size=7
    ),
    "batches": lambda: DataLoader(BITS, batch_size=7, collate_fn=as_batches),
    "mapping": lambda: {
        "train": DataLoader(BITS[:40], batch_size=7),
        "valid": DataLoader(BITS[40:50], batch_size=7),
        "test": DataLoader(BITS[50:], batch_size=7),
    },
    "splits": own_splits,
    "values": lambda: BITS,
    "shuffled": lambda: DataLoader(BITS, batch_size=7, shuffle=True),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_model_and_data_of_ones_own(source: str, tmp_path: Path) -> None:
    """Trained, checkpointed, resumed, loaded, evaluated, diagnosed and generated from."""
    data, real = SOURCES[source](), source == "splits"

    def make() -> VRNN:
        options = {**SIZES, "covariate_size": 2} if source == "covariates" else SIZES
        return VRNN(3 if real else 4, emission="gaussian" if real else "bernoulli", **options)

    torch.manual_seed(0)
    summary = train(config(tmp_path), model=make(), data=data)
    assert (summary["model"], summary["dataset"]) == ("VRNN", "own")
    assert {e["event"] for e in read_metrics(tmp_path / "run")} == {"train", "valid", "test"}
    resumed = TrainConfig(resume=tmp_path / "run", max_updates=9)
    with pytest.raises(UsageError, match=r"trained on a model argument: give it again"):
        train(resumed, data=data)
    with pytest.raises(UsageError, match=r"trained on a data argument: give it again"):
        train(resumed, model=make())
    assert train(resumed, model=make(), data=data)["updates"] == 9
    torch.manual_seed(0)
    whole = make()
    train(config(tmp_path / "whole", max_updates=9), model=whole, data=data)
    loaded = pyro_zf.load(tmp_path / "run", "last", model=make(), data=data)
    kept = torch.load(tmp_path / "whole/run/checkpoints/last.pt", weights_only=True)["model"]
    assert all(torch.equal(x, kept[name]) for name, x in loaded.state_dict().items())
    found = pyro_zf.evaluate(loaded, num_samples=3, fivo=True, max_sequences=4)
    assert all(math.isfinite(found[f"{x}_nats_per_sequence"]) for x in ("elbo", "iwae", "fivo"))
    assert len(repr(found).splitlines()) >= 7
    assert "nats per sequence" in repr(found)
    generated = pyro_zf.generate(loaded, 5, seed=1)
    assert generated.sequences.shape == (5, splits_of(data).num_steps, 3 if real else 4)
    assert torch.equal(generated.sequences, pyro_zf.generate(loaded, 5, seed=1).sequences)
    if len(splits_of(data).test) > 1:
        diagnosed = pyro_zf.diagnose(loaded)
        assert "z carries about" in repr(diagnosed)
    with pytest.raises(UsageError, match=r"trained on a model object of the class VRNN"):
        pyro_zf.load(tmp_path / "run")
    with pytest.raises(DataError, match=r"given in Python: open it there with pyro_zf\.load"):
        load_run(tmp_path / "run")


def test_a_run_is_loaded_without_its_data(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the old boat .\nthe red tree .\n" * 30, encoding="utf-8")
    settings = {"dataset": "text", "data": path, **SIZES, "max_updates": 4, "num_figures": 0}
    train(TrainConfig.of(output_dir=tmp_path / "run", **settings))
    text = path.read_text(encoding="utf-8")
    path.unlink()
    for where in (tmp_path / "run", tmp_path / "run/checkpoints/last.pt", str(tmp_path / "run")):
        model = pyro_zf.load(where)
        assert not model.training
        generated = pyro_zf.generate(model, 3, argmax=True)
        assert generated.texts is not None
        assert all(set(x.split()) <= {*text.split(), "<bos>", "<unk>"} for x in generated.texts)
        assert repr(generated).startswith("3 generated sequences of 5 words, categorical")
    with pytest.raises(DataError, match="is not a file"):
        pyro_zf.evaluate(model)
    moved = tmp_path / "elsewhere" / "text.txt"
    moved.parent.mkdir()
    moved.write_text(text, encoding="utf-8")
    model = pyro_zf.load(tmp_path / "run", data=moved)
    assert pyro_zf.evaluate(model, num_samples=2)["num_sequences"] == 3
    moved.write_text(text + "more words\n" * 9, encoding="utf-8")
    model = pyro_zf.load(tmp_path / "run", data=moved)
    with pytest.raises(DataError, match=r"was trained on text of text\.txt, but the data found"):
        pyro_zf.evaluate(model)


def test_what_loaders_give_is_checked_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    classes = torch.arange(60) % 3
    splits = splits_of(DataLoader(TensorDataset(BITS, LENGTHS, classes), batch_size=7))
    assert splits.covariate_names == ("0", "1", "2")
    assert splits.train.batch(np.arange(4)).covariates.sum() == 4
    shuffled = DataLoader(BITS, batch_size=7, shuffle=True)
    one, two = splits_of(shuffled), splits_of(shuffled)
    assert one.content_key() == two.content_key()
    assert torch.equal(one.test.batch(np.arange(3)).targets, two.test.batch(np.arange(3)).targets)
    batch = SequenceBatch.from_targets(torch.randint(3, (30, 5)) + 1, start=9)
    symbols = splits_of([batch])
    assert (symbols.values.start, symbols.values.size) == (9, 10)
    real = torch.randn(60, 6, 4)
    for data, message in (
        ([SequenceBatch(batch.inputs.flip(1), batch.targets)], "are not the targets delayed by one step"),
        ([SequenceBatch(batch.inputs, batch.targets, continues=True)], "that continues another is not"),
        (real * 0 + 3.5, r"all values of the data are 3\.5"),
        (real.double() * 1e200, "beyond the range of 32-bit numbers"),
        (real.to(torch.complex64), "holds torch.complex64, which is not supported"),
        ([(real, LENGTHS.float())], "whole numbers of shape"),
        ([(real, LENGTHS[:, None])], "whole numbers of shape"),
        ([(real[:30], None, torch.ones(30, 2)), (real[30:], None)], "30 of 60 sequences have no covariates"),
        ([(real, None, torch.ones(60, 3, 2))], "covariates for fewer steps than a sequence has"),
        (torch.zeros(60, 6, 0), "it should be .batch, time, size."),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            splits_of(data)
    lengths = torch.arange(60) % 7
    far = real.clone()
    far[13, 2] = -99999.0
    findings = splits_of([(far, lengths)]).findings
    assert "9 sequences of length 0 were left out" in findings
    assert "holds -99999 at step 2 (4 such values)" in caplog.text
    assert "stored as floats" in splits_of(torch.poisson(real.abs() * 5)).findings[0]
    assert splits_of(torch.poisson(real.abs() * 5).long()).kind == "counts"
    assert splits_of(real.to(torch.bfloat16)).kind == "real"


def test_errors(tmp_path: Path) -> None:
    """The same lines from Python as from the command line."""
    for settings, message in (
        ({"dataset": "minst"}, "--dataset minst: must be one of mnist, .*; did you mean mnist?"),
        ({"max_updates": "x"}, "--max-updates cannot be 'x'; it must be int"),
        ({"batch_size": 2.5}, "--batch-size cannot be 2.5; it must be int"),
        ({"preset": "papers"}, "--preset papers: must be one of auto, paper, small"),
    ):
        with pytest.raises(UsageError, match=message):
            TrainConfig(**settings)  # type: ignore[arg-type]
    assert TrainConfig(output_dir="runs/x").output_dir == Path("runs/x")  # type: ignore[arg-type]
    assert TrainConfig(max_updates=np.int64(5)).max_updates == 5  # type: ignore[arg-type]
    assert TrainConfig(aux=["b=1"]).aux == ("b=1",)  # type: ignore[arg-type]
    loader = DataLoader(BITS, batch_size=7)
    vrnn = VRNN(4, **SIZES)
    for options, error, message in (
        ({"model": VRNN}, TypeError, "an instance of a SequenceModel, not the class VRNN"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "an instance of a SequenceModel, not Linear"),
        ({"model": VRNN(5, **SIZES)}, UsageError, "VRNN was made for 5 values per step, but .* has 4"),
        ({"model": VRNN(4, emission="gaussian", **SIZES)}, UsageError, "is for real data, but .* binary"),
        ({"model": VRNN(4, covariate_size=1, **SIZES)}, UsageError, "on 1 covariates, but .* has 0"),
        ({"data": list(BITS)}, DataError, "a list of tensors may be of batches or of sequences"),
        ({"data": "x.h5"}, DataError, "the data cannot be of type str: give Splits, a DataLoader, a tensor"),
        ({"data": BITS.numpy()}, DataError, r"are a NumPy array: give torch\.from_numpy"),
        ({"data": {"train": loader}}, DataError, "data has no valid, test"),
        ({"data": DataLoader(BITS.reshape(60, 6, 2, 2))}, DataError, r"has shape \(1, 6, 2, 2\)"),
        ({"data": DataLoader(BITS / 0)}, DataError, "not finite: sequence 0 has .* at step 0"),
        (
            {"data": DataLoader(TensorDataset(BITS, LENGTHS * 9))}, DataError,
            r"a batch of 1 sequences of 6 steps has lengths \[9\]",
        ),
    ):  # fmt: skip
        with pytest.raises(error, match=message):  # type: ignore[arg-type]
            train(config(tmp_path), **{"model": vrnn, "data": loader, **options})
    with pytest.raises(UsageError, match="--aux is an option of a model that train"):
        train(config(tmp_path, aux=("b=1",)), model=vrnn, data=loader)
    with pytest.raises(
        UsageError, match="--segment selects or converts data, but the data were given"
    ):
        train(config(tmp_path, segment=4), model=vrnn, data=loader)
    with pytest.raises(
        UsageError, match=r"evaluate has no option num_sample: .*did you mean num_samples"
    ):
        pyro_zf.evaluate(vrnn, loader, num_sample=3)
    with pytest.raises(UsageError, match=r"was not loaded from a run, so give the data, as data="):
        pyro_zf.evaluate(vrnn)
    with pytest.raises(UsageError, match="RNN has no latents to diagnose"):
        pyro_zf.diagnose(RNN(4, hidden_size=3, mlp_size=3), loader)
    with pytest.raises(DataError, match="is not a run folder with a checkpoint 'best'"):
        pyro_zf.load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        pyro_zf.load(tmp_path / "nothing")
    assert not (tmp_path / "run").exists()


class FailsInEvaluation(VRNN):
    """Its emission works in training alone."""

    fails = "eval"

    def emitted(self, features: Tensor, batch: SequenceBatch) -> Any:
        if not self.training:
            raise RuntimeError("no evaluation\nwith this emission")
        return super().emitted(features, batch)


def test_a_look_that_fails_does_not_lose_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = DataLoader(BITS, batch_size=7)
    caplog.set_level(logging.INFO)
    summary = train(
        config(tmp_path, num_figures=2), model=FailsInEvaluation(4, **SIZES), data=loader
    )
    assert summary["updates"] == 6
    assert "test_elbo_nats_per_sequence" not in summary
    for what in ("validation", "the test", "saving figures"):
        assert (
            f"{what} failed and is left out (RuntimeError: no evaluation); nothing of the training"
            in caplog.text
        )
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert state["update"] == 6
    again = VRNN(4, **SIZES)
    again.load_state_dict(state["model"])
    assert (
        batch_bounds(again.model, again.guide, SequenceBatch.from_targets(BITS))
        .elbo.isfinite()
        .all()
    )


class FailsInDiagnosis(VRNN):
    def guide_steps(self, batch: SequenceBatch) -> None:
        super().guide_steps(batch)

    @property
    def programs_are_derived(self) -> bool:
        if not self.training:
            raise RuntimeError("nobody looks at me")
        return True


def test_a_diagnosis_that_fails_leaves_the_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = train(config(tmp_path), model=FailsInDiagnosis(4, **SIZES), data=DataLoader(BITS))
    assert (
        "the diagnosis of the latents failed and is left out (RuntimeError: nobody" in caplog.text
    )
    assert math.isfinite(summary["test_elbo_nats_per_sequence"])
    assert summary["best_update"] > 0


def test_the_log_averages_over_sequences(tmp_path: Path) -> None:
    """Rows without steps, as in the last batch of streams, are not counted."""
    path = tmp_path / "text.txt"
    path.write_text("abcd efgh\n" * 44, encoding="utf-8")  # the last of 8 streams ends early
    settings = {
        "dataset": "text", "data": path, "level": "character", "segment": 10, "batch_size": 8,
        "model": "rnn", "hidden_size": 8, "mlp_size": 8, "num_figures": 0, "log_interval": 1,
        "learning_rate": 1e-12, "max_epochs": 1,
    }  # fmt: skip
    train(TrainConfig.of(output_dir=tmp_path / "run", **settings))
    events = [e for e in read_metrics(tmp_path / "run") if e["event"] == "train"]
    assert len(events) == 5
    for event in events:  # without latents the loss is minus the ELBO
        assert event["elbo_nats_per_sequence"] == pytest.approx(
            -event["loss_nats_per_sequence"], rel=1e-4
        )


def test_training_in_a_program_of_ones_own_is_not_silent(tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from pyro_zf import VRNN, TrainConfig, train\n"
        "data = torch.utils.data.DataLoader((torch.rand(40, 6, 4) > 0.5).float(), batch_size=8)\n"
        "vrnn = VRNN(4, hidden_size=8, latent_size=2, mlp_size=8)\n"
        "train(TrainConfig(output_dir=Path(sys.argv[1]), max_updates=3, num_figures=0), vrnn, data)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")], capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert "model: VRNN, 1,348 parameters, cpu" in done.stderr
    assert "update 3: validation -ELBO" in done.stderr


def test_what_batches_and_models_refuse() -> None:
    zf = ZForcing(4, **SIZES)
    for wrong, error, message in (
        (lambda: zf.model(BITS), TypeError, r"takes a SequenceBatch, not a Tensor: use SequenceBatch\.from"),
        (lambda: SequenceBatch.from_targets(BITS[:3], [1, 2, 3]), TypeError, r"lengths must be a tensor, not a list: use torch\.tensor\(lengths\)"),
        (lambda: SequenceBatch.from_targets(BITS.numpy()), TypeError, r"not a ndarray: use torch\.from_numpy\(targets\)"),
        (lambda: SequenceBatch.from_targets([[1, 2]]), TypeError, r"not a list: use torch\.tensor\(targets\)"),
        (lambda: SequenceBatch.from_targets(BITS[:2], torch.tensor([1.0, 2.0])), TypeError, r"whole numbers, not torch\.float32"),
        (lambda: SequenceBatch.from_targets(BITS[:2], covariates=np.ones((2, 1))), TypeError, r"covariates must be a tensor"),
        (lambda: zf.model(SequenceBatch.from_targets(BITS.to(torch.uint8))), TypeError, r"call batch\.numeric\(\)"),
        (lambda: zf.model(SequenceBatch.from_targets(BITS.double())), TypeError, r"call batch\.to\(dtype=torch\.float32\)"),
        (lambda: ZForcing(4, covariate_size=1, **SIZES).model(SequenceBatch.from_targets(BITS, covariates=torch.ones(60, 1).double())), TypeError, r"holds torch\.float64 and the model torch\.float32"),
        (lambda: zf.model(SequenceBatch.from_targets(BITS[..., :3])), ValueError, r"takes 4 values per step, \(batch, time, 4\), but the batch is \(60, 6, 3\)"),
        (lambda: zf.model(SequenceBatch.from_targets(BITS[..., 0])), ValueError, r"takes 4 values per step"),
        (lambda: ZForcing(4, emission="categorical", **SIZES).model(SequenceBatch.from_targets(BITS)), ValueError, r"takes symbols, \(batch, time\) whole numbers"),
        (lambda: zf.generate(torch.zeros(28), num_steps=3), ValueError, r"start must be \(batch, 4\).*not \(28,\)"),
        (lambda: ZForcing(4, emission="categorical", **SIZES).generate(torch.zeros(2, 4), 3), ValueError, r"start must be \(batch,\), one symbol each"),
        (lambda: ZForcing(4, reverse_emission=torch.nn.Linear, **SIZES), TypeError, r"reverse_emission is the class Linear; give an instance"),
        (lambda: ZForcing(4, aux={"x": (torch.nn.Linear, 1.0)}, **SIZES), TypeError, r"the cost 'x' is the class Linear; give an instance"),
        (lambda: zf.loss_module(pyro_zf.infer.Trace_ELBO), TypeError, r"the objective is the class Trace_ELBO; give Trace_ELBO\(\)"),
        (lambda: pyro_zf.infer.evaluate(zf.model, zf.guide, SequenceBatch.from_targets(BITS)), TypeError, r"batches are a list or an iterator of SequenceBatch"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            wrong()  # type: ignore[no-untyped-call]


def test_random_weights_are_refused() -> None:
    """In Pyro they would leave neither a site nor a parameter."""
    import pyro.distributions as dist
    from pyro.nn import PyroSample
    from pyro.nn.module import to_pyro_module_

    for path in ("cell.lstm.weight_hh_l0", "prior.network.0.weight"):
        zf: SequenceModel = ZForcing(4, **SIZES)
        to_pyro_module_(zf)
        owner, _, name = path.rpartition(".")
        module = zf.get_submodule(owner)
        shape = getattr(module, name).shape
        setattr(module, name, PyroSample(dist.Normal(0.0, 1.0).expand(shape).to_event(2)))
        with pytest.raises(
            ValueError, match=r"weight\S* of a \w+ is a PyroSample, but random weights"
        ):
            zf.model(SequenceBatch.from_targets(BITS))


class NeedsGradients(VRNN):
    """Its emission works while gradients are on."""

    def emitted(self, features: Tensor, batch: SequenceBatch) -> Any:
        if not torch.is_grad_enabled():
            raise RuntimeError("no bound without gradients")
        return super().emitted(features, batch)


def test_a_log_entry_that_fails_keeps_its_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = train(config(tmp_path, num_figures=2), model=NeedsGradients(4, **SIZES), data=BITS)
    assert summary["updates"] == 6
    assert "the bound of a batch failed and is left out (RuntimeError: no bound" in caplog.text
    events = [e for e in read_metrics(tmp_path / "run") if e["event"] == "train"]
    assert all(math.isfinite(e["loss_nats_per_sequence"]) for e in events)
    assert len(events) == 3
    with pytest.raises(DataError, match=r"no|'best'.*there is checkpoint='last'"):
        pyro_zf.load(tmp_path / "run", model=VRNN(4, **SIZES), data=BITS)
    assert pyro_zf.load(tmp_path / "run", "last", model=VRNN(4, **SIZES), data=BITS)


def test_counts_beyond_the_largest_are_refused(tmp_path: Path) -> None:
    counts = torch.poisson(torch.full((60, 6, 4), 3.0)).long()
    with pytest.raises(UsageError, match=r"--max-count 4 is the largest count .* has"):
        train(config(tmp_path), VRNN(4, emission="beta-binomial", max_count=4, **SIZES), counts)
    options = {**SIZES, "emission": "beta-binomial"}
    with pytest.raises(UsageError, match="--max-count 4 is the largest count"):
        train(TrainConfig.of(output_dir=tmp_path / "run", max_count=4, **options), data=counts)
    summary = train(
        TrainConfig.of(output_dir=tmp_path / "run", max_updates=3, num_figures=0, **options),
        data=counts,
    )
    assert math.isfinite(summary["test_elbo_nats_per_sequence"])


def test_data_of_ones_own_have_no_settings_of_mnist(tmp_path: Path) -> None:
    own = resolve(TrainConfig(model="variational-bilstm", own_data=True, device="cpu"))
    (tmp_path / "x.h5").touch()
    other = resolve(
        TrainConfig(
            model="variational-bilstm", dataset="hdf5", data=tmp_path / "x.h5", device="cpu"
        )
    )
    assert own.options == other.options
    assert own.learning_rate == other.learning_rate


def test_options_have_types() -> None:
    for options, message in (
        ({"hidden_size": "8"}, "--hidden-size cannot be '8'; it must be int"),
        ({"hidden_size": 8.5}, "--hidden-size cannot be 8.5; it must be int"),
        ({"alpha": "x"}, "--alpha cannot be 'x'; it must be float"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve(TrainConfig(options=options))
    with pytest.raises(TypeError, match="config must be a TrainConfig, not a dict"):
        train({"max_updates": 3})  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"model must be a SequenceModel, as load\(\) returns, not a str"
    ):
        pyro_zf.evaluate("runs/a")  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match="num_samples must be a whole number of at least 1, not '3'"
    ):
        pyro_zf.evaluate(VRNN(4, **SIZES), BITS, num_samples="3")
    with pytest.raises(
        UsageError, match="VRNN was made for 5 values per step, but data given in Python has 4"
    ):
        pyro_zf.evaluate(VRNN(5, **SIZES), BITS)


@pytest.mark.parametrize("system", ["zforcing", "rnn"])
def test_exported_weights(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They load without the run, and give its bound; damage is found; nothing is overwritten."""
    pytest.importorskip("mlxtend")
    pytest.importorskip("safetensors")
    monkeypatch.delenv("PYRO_ZF_DATA", raising=False)
    monkeypatch.setenv("PYRO_ZF_OFFLINE", "1")
    monkeypatch.setenv("PYRO_ZF_CACHE", str(tmp_path / "cache"))
    run, folder = tmp_path / "run", tmp_path / "given away"
    sizes = {k: v for k, v in SIZES.items() if system != "rnn" or k != "latent_size"}
    settings = {
        "emission": "autoregressive-bernoulli", "max_updates": 4, "num_figures": 0, "valid_sequences": 20,
        "test_sequences": 30, **sizes,
    }  # fmt: skip
    train(TrainConfig.of(model=system, output_dir=run, data_dir=tmp_path, **settings))
    numbers = {"num_samples": 2, "max_sequences": 20, "seed": 3}
    expected = pyro_zf.evaluate(pyro_zf.load(run), **numbers)
    assert (
        main(["evaluate", str(run), "--num-samples", "2", "--max-sequences", "20", "--seed", "3"])
        == 0
    )
    few = ["--num-samples", "2", "--max-sequences", "20"]
    if system != "rnn":
        assert main(["evaluate", str(run), *few, "--latents", "prior"]) == 0
    assert main(["export", str(run), str(folder)]) == 0
    file = folder / "model.safetensors"
    assert file.stat().st_mode == (folder / "README.md").stat().st_mode
    assert str(tmp_path).encode() not in file.read_bytes(), "no path of this machine is given away"
    shutil.rmtree(run)
    for path in (folder, file):
        model = pyro_zf.load(path)
        assert dict(pyro_zf.evaluate(model, **numbers)) == dict(expected)
    assert pyro_zf.generate(model, 2).values.shape == (2, 28, 28)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert {row.count("|") for row in re.findall(r"^\|.*", card, re.M)} == {5}, "four columns"
    assert card.count("| -ELBO | 2 | 20 |") == 1, "with z from the posterior"
    assert f"| -ELBO | 2 | 20 | {-expected['elbo_nats_per_sequence']:.2f} ±" in card
    for part in ("| -ELBO | 1 | 30 |", "5,000 MNIST digits", "not comparable", "seed 0", f"--model {system}",
                 "--emission autoregressive-bernoulli", "Licence"):  # fmt: skip
        assert part in card
    assert str(tmp_path) not in card

    with pytest.raises(UsageError, match="holds the best checkpoint alone, not the last one"):
        pyro_zf.load(folder, checkpoint="last")
    with pytest.raises(DataError, match="is not the folder of a training that has finished"):
        pyro_zf.export(run, tmp_path / "other")
    content = file.read_bytes()
    for position in (5, 200, len(content) // 2, len(content) - 9):
        file.write_bytes(
            content[:position] + bytes([content[position] ^ 0x40]) + content[position + 1 :]
        )
        with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
            pyro_zf.load(folder)
    file.write_bytes(content[:-10])
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        pyro_zf.load(file)


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    train(config(tmp_path), model=VRNN(4, **SIZES), data=BITS)
    file = pyro_zf.export(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UsageError, match=r"already has a model\.safetensors: give another folder"):
        pyro_zf.export(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UsageError, match="trained on a model object of the class VRNN"):
        pyro_zf.load(file)
    with pytest.raises(DataError, match=r"has no config\.json; pyro_zf\.load reads an export"):
        load_run(tmp_path / "out")
    ours = pyro_zf.load(file, model=VRNN(4, **SIZES)).state_dict()
    theirs = pyro_zf.load(tmp_path / "run", model=VRNN(4, **SIZES)).state_dict()
    assert all(torch.equal(ours[k], x) for k, x in theirs.items())


class Plain(SequenceModel):
    """A model of one's own, of one layout and without an emission."""

    def __init__(self) -> None:
        super().__init__(layout="steps")
        self.rate = torch.nn.Parameter(torch.zeros(4))

    def model_steps(self, batch: SequenceBatch) -> Any:
        with self.sequences(batch):
            for t in range(batch.num_steps):
                with self.real_steps(batch, t):
                    y = pyro.distributions.Bernoulli(logits=self.rate).to_event(1)
                    pyro.sample(f"y_{t + 1}", y, obs=self.target_at(batch, t))
        return ()

    def guide_steps(self, batch: SequenceBatch) -> None:
        pass


class Forgetful(Plain):
    """The same, but it counts the steps past the end."""

    def real_steps(self, batch: SequenceBatch, t: int) -> Any:
        return contextlib.nullcontext()


def test_a_model_without_an_emission(tmp_path: Path) -> None:
    """It is trained; a mistake in it is found before there is a folder, so the next try has its name."""
    data = DataLoader(TensorDataset(BITS, LENGTHS), batch_size=7)
    with pytest.raises(
        UsageError, match="the log-probability of site y_2 in the model includes steps past"
    ):
        train(config(tmp_path), model=Forgetful(), data=data)
    other = Plain()
    other.layout = "time"
    with pytest.raises(NotImplementedError, match=r'not define guide_time: .* layout="steps"'):
        train(config(tmp_path), model=other, data=data)
    assert not (tmp_path / "run").exists()
    summary = train(config(tmp_path, learning_rate=0.1), model=Plain(), data=data)
    assert summary["test_elbo_nats_per_step"] == pytest.approx(-4 * math.log(2), rel=0.1)


def test_weights_of_a_model_that_training_sets_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pyro_zf")
    train(config(tmp_path, kl_start=0.2), model=VRNN(4, **SIZES), data=BITS)
    assert not [x for x in caplog.messages if "kl_weight" in x]
    train(config(tmp_path / "other"), model=VRNN(4, kl_weight=0.5, **SIZES), data=BITS)
    assert (
        "the model's kl_weight of 0.5 is replaced by the schedule of the settings, which starts at 1 (--kl-start)"
        in caplog.messages
    )


def test_the_baseline_of_values_that_are_not_normalised(caplog: pytest.LogCaptureFixture) -> None:
    """A Gaussian with the moments of the training data; its entropy if the test data are the same."""
    caplog.set_level(logging.WARNING, "pyro_zf")
    values = torch.tensor([20.0, -300.0]) + torch.tensor([4.0, 0.5]) * torch.randn(30, 8, 2)
    splits = splits_of({"train": values, "valid": values, "test": values})
    steps = values.reshape(-1, 2).double()
    normal = torch.distributions.Normal(steps.mean(0), steps.std(0, correction=0))
    assert splits.marginal_nats() == pytest.approx(
        -normal.log_prob(steps).sum().item() / 30, rel=1e-4
    )
    assert any("not normalised automatically" in x for x in caplog.messages)
    caplog.clear()
    splits_of({"train": values[:20] / 400, "valid": values[20:25] / 400, "test": values[25:] / 400})
    assert any("standard deviations 0.00" in x for x in caplog.messages)
    caplog.clear()
    splits_of(torch.randn(30, 8, 2))
    assert not caplog.messages


def test_padding_of_covariates_may_be_anything() -> None:
    covariates = torch.randn(60, 6, 2)
    past = torch.arange(6) >= LENGTHS[:, None]
    covariates[past] = math.nan
    splits = splits_of(DataLoader(TensorDataset(BITS, LENGTHS, covariates), batch_size=7))
    given = splits.train.batch(np.arange(len(splits.train))).covariates
    assert given is not None
    assert given.isfinite().all()
    covariates[3, 0] = math.nan
    with pytest.raises(DataError, match="covariates of the data: some values are not finite"):
        splits_of(DataLoader(TensorDataset(BITS, LENGTHS, covariates), batch_size=7))


def test_a_finished_run_that_is_resumed_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config(tmp_path), model=VRNN(4, **SIZES), data=BITS)
    caplog.set_level(logging.INFO, "pyro_zf")
    again = TrainConfig(resume=tmp_path / "run", max_updates=3)
    assert train(again, model=VRNN(4, **SIZES), data=BITS)["updates"] == 6
    assert "update 6 is at or past the limit: there is nothing left to train" in caplog.messages
