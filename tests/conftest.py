"""Fixtures. Every test starts with an empty parameter store, in double precision and on one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _clean_slate(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    monkeypatch.setenv("PYRO_ZF_OFFLINE", "1")
    monkeypatch.setenv("PYRO_ZF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def single_precision() -> None:
    torch.set_default_dtype(torch.float32)


#: Tests without checks of shapes and types, which take half of the time: those that train or run commands, and
#: those that repeat others for many combinations of parts.
UNCHECKED = (
    "training", "reproduce", "analysis", "test_cli", "test_commands", "test_documents",
    "test_every_command", "test_extending", "test_trained", "infer", "models/test_families",
    "models/test_laws", "models/test_carried", "models/test_covariates", "sequence/test_fused",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _checked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check shapes and types in the tests of the parts."""
    name = request.path.relative_to(Path(__file__).parent.parent).as_posix()
    unchecked = name.startswith(tuple(f"tests/{part}" for part in UNCHECKED))
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def unchecked(_checked: None) -> Iterator[None]:
    """Disable the shape and type checks of the test run, as for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with Larochelle's binarized MNIST. Without it, tests are skipped, but fail in CI."""
    folder = os.environ.get("PYRO_ZF_DATA")
    if folder and (Path(folder) / "binarized_mnist.h5").is_file():
        return Path(folder)
    reason = "needs binarized_mnist.h5 in the folder that $PYRO_ZF_DATA names"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
