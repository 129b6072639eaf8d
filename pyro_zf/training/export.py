"""Export of a trained model: its weights and a model card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_zf.analysis.report import best_evaluations, summary_diagnostics, with_error
from pyro_zf.data.datasets import DataError
from pyro_zf.training.checkpoint import load_checkpoint
from pyro_zf.training.checks import UsageError
from pyro_zf.training.config import TrainConfig, command_of
from pyro_zf.training.evaluation import read_evaluations
from pyro_zf.training.record import json_text, read_json, write_text

__all__ = ["export", "read_export"]

WEIGHTS, CARD = "model.safetensors", "README.md"
_BOUNDS = {"elbo": "-ELBO", "iwae": "-IWAE", "kl": "KL"}


def export(run: Path | str, folder: Path | str) -> Path:
    """Write the best model of a run to a folder: its weights as safetensors, and a model card in Markdown.

    The file of the weights also holds the settings and a description of the data, so :func:`pyro_zf.load` needs
    nothing else. Optimiser and random states are left out, and so are the paths of this machine.

    Args:
        run: a run folder of a training that has finished.
        folder: where to write; it is made if it does not exist.

    Returns:
        Path: the file of the weights.

    Raises:
        DataError: if the run is damaged or has not finished.
        UsageError: if safetensors is not installed, or the folder has a model already.
    """
    run, folder = Path(run), Path(folder)
    safetensors = _safetensors()
    path = run / "checkpoints" / "best.pt"
    if not path.is_file() or not (run / "summary.json").is_file():
        raise DataError(f"{run} is not the folder of a training that has finished")
    if (folder / WEIGHTS).exists():
        raise UsageError(f"{folder} already has a {WEIGHTS}: give another folder")
    content = load_checkpoint(path, torch.device("cpu"))
    config = TrainConfig.from_json(content["config"], str(path))
    shared = dataclasses.replace(config, output_dir=None, resume=None, data_dir=None, device="auto")
    if config.data is not None:
        shared = dataclasses.replace(shared, data=Path(config.data.name))
    tensors = {
        name: x.clone(memory_format=torch.contiguous_format) for name, x in content["model"].items()
    }
    about = {
        "config": shared.to_json(), "data": content["data"], "update": content["update"], "sha256": _digest(tensors),
    }  # fmt: skip
    summary = read_json(run / "summary.json")
    page = card(config, summary, read_evaluations(run))
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{WEIGHTS}.part"
    # save_file() would make a file that only its owner can read.
    temporary.write_bytes(safetensors.torch.save(tensors, {"pyro_zf": json_text(about)}))
    write_text(folder / CARD, page)
    os.replace(temporary, folder / WEIGHTS)
    return folder / WEIGHTS


def read_export(path: Path, device: torch.device) -> dict[str, Any]:
    """What :func:`export` has written, with the entries of a checkpoint that a model needs.

    Raises:
        DataError: if the file is damaged or was not written by :func:`export`.
        UsageError: if safetensors is not installed.
    """
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, "pt", device=str(device)) as file:
            about = json.loads((file.metadata() or {})["pyro_zf"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = {"model": tensors, **{name: about[name] for name in ("config", "data", "update")}}
        digest = about["sha256"]
    except Exception as error:  # what damage raises is not documented
        raise DataError(
            f"{path} is damaged or was not written by pyro_zf.export ({type(error).__name__})"
        ) from error
    if _digest(tensors) != digest:
        raise DataError(f"{path} is damaged: the checksum of its weights does not match")
    return content


def card(
    config: TrainConfig, summary: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]
) -> str:
    """The model card."""
    unit, bounds = summary["unit"], []
    for found in (summary_diagnostics(summary), *best_evaluations(summary, evaluations)):
        for name, shown in _BOUNDS.items():
            sign = 1 if name == "kl" else -1
            if value := with_error(found, f"{name}_nats_per_sequence", sign):
                k, n = found["num_samples"], found["num_sequences"]
                bounds.append(f"| {shown} | {k:,} | {n:,} | {value} |")
    comparable = "" if summary["comparable_with_published"] else (
        " These are not the data of the papers, so the numbers are not comparable with published ones."
    )  # fmt: skip
    command = command_of(config) or "the model or its data were given to train() in Python"
    latents = " with latent variables" if summary["has_latents"] else ""
    about = (
        f"A recurrent network{latents}, {summary['num_parameters']:,} parameters, trained with `pyro_zf` for "
        f"{summary['updates']:,} updates ({summary['training_seconds'] / 60:.0f} minutes), seed {config.seed}. "
        f"The weights are those of update {summary['best_update']:,}, the best in validation."
    )
    return f"""# {config.model} on {summary["data"]}

{about}

```python
import pyro_zf

model = pyro_zf.load("{WEIGHTS}")
values = pyro_zf.generate(model, 16).values
```

**Data**: {summary["data"]} ({summary["data_detail"].split(", ", 1)[-1]}).{comparable}

Bounds on the test data, in nats per {unit}; lower is better:

| bound | k | N | nats per {unit} |
|---|---|---|---|
{chr(10).join(bounds)}

Made by:

```bash
{command}
```

Licence of the weights: MIT, as the package. The licence of the data is that of their source.
"""


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UsageError("this needs safetensors: pip install safetensors") from error
    return safetensors
