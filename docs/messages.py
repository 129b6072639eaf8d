"""Writes messages.md: what the commands and functions say when they are misused. Each message is that of a real call."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

import pyro_zf
from pyro_zf.cli import main

HERE = Path(__file__).parent
COMMANDS = [
    r"",
    r"pyro-zf trian",
    r"pyro-zf train --lr 0.01",
    r"pyro-zf train --hiden-size 64",
    r"pyro-zf train --hidden-size big",
    r"pyro-zf train --hidden-size -3",
    r"pyro-zf train --seed 1.5",
    r"pyro-zf train --dataset minst",
    r"pyro-zf train --model vrn",
    r"pyro-zf train --model vrnn --alpha 0.1",
    r"pyro-zf train --prior gausian",
    r"pyro-zf train --objective iwea",
    r"pyro-zf train --free-bits 1 --objective iwae",
    r"pyro-zf train --aux b",
    r"pyro-zf train --aux c=1",
    r"pyro-zf train --max-epochs 0",
    r"pyro-zf train --import parts.py",
    r"pyro-zf train --dataset text",
    r"pyro-zf train --dataset text --data missing.txt",
    r"pyro-zf train --dataset text --data mine.h5",
    r"pyro-zf train --dataset wav --data notes.txt",
    r"pyro-zf train --dataset wav --data empty",
    r"pyro-zf train --dataset wav --data sounds",
    r"pyro-zf train --dataset hdf5 --data mine.h5",
    r"pyro-zf train --dataset hdf5 --data mine.h5 --hdf5-key z",
    r"pyro-zf train --dataset hdf5 --data mine.h5 --hdf5-key y",
    r"pyro-zf train --dataset hdf5 --data mine.h5 --hdf5-key x --emission categorical",
    r"pyro-zf train --data notes.txt",
    r"pyro-zf train --output-dir RUN",
    r"pyro-zf train --resume RUN --hidden-size 16",
    r"pyro-zf train --resume missing",
    r"pyro-zf evaluate",
    r"pyro-zf evaluate missing",
    r"pyro-zf evaluate RUN --k 25",
    r"pyro-zf evaluate RUN --num-samples 0",
    r"pyro-zf evaluate RUN --split tset",
    r"pyro-zf generate RUN --task continue --prefix hello",
    r"pyro-zf generate RUN --temperature -1",
    r"pyro-zf interpolate RUN --first hello",
    r"pyro-zf reproduce zf-tabel1",
    r"pyro-zf reproduce zf-table2 --dataset timit",
    r"pyro-zf export RUN",
    r"",
][1:-1]
CALLS = [
    r"",
    r'ZForcing(28, prior="gausian")',
    r"ZForcing(28, hiden_size=64)",
    r"ZForcing(0)",
    r"ZForcing(28, hidden_size=-1)",
    r"VariationalBiLSTM(28, skip_gradient=2.0)",
    r"SequenceBatch.from_targets([1, 2, 3])",
    r"SequenceBatch.from_targets(torch.zeros(2, 3, 4), lengths=torch.tensor([3, 4]))",
    r"SequenceBatch.from_targets(torch.zeros(2, 3, 4), lengths=torch.tensor([3]))",
    r"zf.model(torch.zeros(2, 5, 28))",
    r"zf.model(SequenceBatch.from_targets(torch.zeros(2, 5, 27)))",
    r"zf.generate(torch.zeros(16, 27), num_steps=5)",
    r"zf.generate(torch.zeros(16, 28), num_steps=0)",
    r'load("missing")',
    r'load("notes.txt")',
    r'generate(load("RUN"), 0)',
    r"evaluate(zf)",
    r'train({"max_updates": 3})',
    r'train(TrainConfig(max_updates="3"))',
    r"TrainConfig.of(max_steps=3)",
    r'TrainConfig.of(model="vrn")',
    r"train(TrainConfig(max_updates=3), data=torch.zeros(3))",
    r'train(TrainConfig(max_updates=3), model="vrnn")',
    r"TraceIWAE(num_particles=0)",
    r'export("missing", "weights")',
    r"",
][1:-1]


@contextlib.contextmanager
def folder() -> Iterator[None]:
    """A folder with a run and with files that are no data, as the working directory."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as made:
        os.chdir(made)
        try:
            Path("notes.txt").write_text("the film was good . " * 50)
            Path("empty").mkdir()
            Path("sounds").mkdir()
            Path("sounds/broken.wav").write_bytes(b"RIFF....")
            with h5py.File("mine.h5", "w") as file:
                file["x"] = np.random.default_rng(0).normal(size=(40, 6, 4))
                file["y"] = np.full((40, 6, 4), np.nan)
            small = "--hidden-size 4 --latent-size 2 --mlp-size 4 --max-updates 1 --num-figures 0"
            command = f"train --dataset hdf5 --data mine.h5 --hdf5-key x {small} --output-dir RUN"
            assert said(command)[0] == 0
            yield
        finally:
            os.chdir(before)


def said(command: str) -> tuple[int, str]:
    """The exit code of a command, and its error."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = main(shlex.split(command))
    return code, err.getvalue().strip().removeprefix("error: ")


def raised(call: str, namespace: dict[str, Any]) -> str:
    """The error of a Python expression."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            eval(call, namespace)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{call} raises nothing")


def messages() -> tuple[dict[str, str], dict[str, str]]:
    """The message of each command and of each call."""
    namespace: dict[str, Any] = {name: getattr(pyro_zf, name) for name in pyro_zf.__all__}
    namespace["torch"] = torch
    namespace["TraceIWAE"] = pyro_zf.infer.TraceIWAE
    namespace["zf"] = pyro_zf.ZForcing(28, hidden_size=4, latent_size=2, mlp_size=4)
    commands, calls = {}, {}
    before = logging.root.manager.disable
    with warnings.catch_warnings(), folder():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        here = str(Path.cwd().resolve())
        try:
            for command in COMMANDS:
                code, text = said(command.removeprefix("pyro-zf "))
                assert code == 2, command
                commands[command] = text.replace(f"{here}/", "")
            for call in CALLS:
                calls[call] = raised(call, namespace).replace(f"{here}/", "")
        finally:
            logging.disable(before)
    return commands, calls


def page() -> str:
    """The page as text."""
    lines = [
        "# Messages", "",
        "This page lists the error message for each common mistake. The working directory has a run, `RUN`, whose data are the "
        "array `x` of `mine.h5`; the text `notes.txt`; and the folders `empty` and `sounds`, the latter with a "
        "file that is not a sound file. Commands print the message after `error: ` and end with exit code 2. The page "
        "is written by `docs/messages.py`, which makes each of these mistakes.",
    ]  # fmt: skip
    for title, found in zip(("Commands", "Python"), messages(), strict=True):
        lines += ["", f"## {title}", "", "| mistake | message |", "|---|---|"]
        lines += [
            f"| `{mistake}` | {text.replace('|', chr(92) + '|')} |"
            for mistake, text in found.items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "messages.md").write_text(page(), encoding="utf-8")
