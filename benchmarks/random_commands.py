"""Run random command lines over all commands and count how they end.

    python benchmarks/random_commands.py --number 500

Each line has a command, a few of its own flags with random values, most of them extreme or wrong, and sometimes
a flag or an argument that does not exist. Commands that read a run get one of three: a sound one, a damaged
one, and one that does not exist. A line must end with exit code 0 (done), 1 (training has diverged or memory
was not enough), 2 (wrong usage) or 130 (interrupted), and never with a traceback. The script ends with 1
otherwise, and prints the lines.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import h5py
import numpy as np

from pyro_zf.cli import COMMANDS
from pyro_zf.cli import main as run_command
from pyro_zf.models import MODELS

ENDS = (0, 1, 2, 130)
#: Extreme and wrong values; those of a flag's own choices are added to them.
VALUES = (
    "0", "1", "2", "3", "-1", "-0.0", "0.5", "1e-30", "1e30", "1e300", "-1e300", "nan", "inf", "-inf",
    "9223372036854775807", "9223372036854775808", "1" + "0" * 30, "", " ", "None", "none", "True", "auto", "x",
    "/", ".", "nowhere", "/dev/null", "--", "-", "\u00e9\u4e2d", "\x1b[31m", "a\nb", "$x_{", "%s", "1,2", "[1,2]",
    "{}", "1 2",
)  # fmt: skip
#: Seconds after which a line is interrupted as by Ctrl-C.
LIMIT = 10


def flags_of(command: str, *arguments: str) -> dict[str, list[str]]:
    """The flags of a command and, where its help lists them, the values that each takes."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        run_command([command, *arguments, "--help-all"])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())
    choices = re.findall(r"(--[a-z][a-z0-9-]+)(?: +\{([^}]*)\})?", plain)
    flags: dict[str, list[str]] = {}
    for flag, values in choices:
        flags.setdefault(flag, []).extend(v for v in re.split(r"[,\s]+", values) if v)
    for flag in ("--help", "--help-all"):
        flags.pop(flag, None)
    return flags


def prepared(folder: Path) -> dict[str, list[str]]:
    """Make data and runs in a folder; return the arguments that name them."""
    rng = np.random.default_rng(0)
    with h5py.File(folder / "mine.h5", "w") as file:
        file["x"] = rng.normal(size=(40, 6, 3)).astype("f4")
    (folder / "text.txt").write_text("some words and some more\n" * 60, encoding="utf-8")
    data = ["--dataset", "hdf5", "--data", "mine.h5"]
    small = [
        "--hidden-size", "6", "--mlp-size", "5", "--batch-size", "8", "--max-updates", "4", "--log-interval", "2",
        "--valid-interval", "2", "--num-figures", "2",
    ]  # fmt: skip
    assert run_command(["train", *data, *small, "--latent-size", "2", "--output-dir", "sound"]) == 0
    shutil.copytree("sound", "damaged")
    content = bytearray(Path("damaged/checkpoints/best.pt").read_bytes())
    content[len(content) // 2] ^= 0x40
    Path("damaged/checkpoints/best.pt").write_bytes(content)
    Path("damaged/summary.json").write_text("[", encoding="utf-8")
    return {"small": small, "data": data, "text": ["--dataset", "text", "--data", "text.txt"]}


class Lines:
    """Random command lines."""

    def __init__(self, seed: int, known: dict[str, list[str]]) -> None:
        self.chance = random.Random(seed)
        self.known = known
        self.flags = {c: flags_of(c) for c in COMMANDS if c != "train"}
        self.of_model = {m: flags_of("train", "--model", m) for m in MODELS}

    def __call__(self) -> list[str]:
        pick = self.chance.choice
        command = pick(list(COMMANDS))
        line = [command]
        if command == "train":
            model = pick(list(self.of_model))
            flags = self.of_model[model]
            line += [
                *pick([self.known["data"], self.known["text"]]),
                "--model",
                model,
                *self.known["small"],
            ]
        else:
            flags = self.flags[command]
            if command == "prepare":
                line += pick(
                    [["hdf5", "--data", "mine.h5"], ["text", "--data", "text.txt"], [pick(VALUES)]]
                )
            elif command == "reproduce":
                line += [pick(["all", "zf-table1", "vbl-table2", "tabel"]), "--collect"]
            else:
                line.append(pick(["sound", "sound", "sound", "damaged", "nowhere", *VALUES[:3]]))
                if command == "export":
                    line.append(pick(["exported", "sound", "mine.h5", *VALUES]))
        for _ in range(self.chance.randrange(4) if flags else 0):
            flag = pick(list(flags))
            line += [flag, pick([*VALUES, *4 * flags[flag], *map(str, range(2, 8))])]
        if self.chance.random() < 0.1:
            line.insert(
                self.chance.randrange(1, len(line) + 1), pick(["--lr", "--k", "extra", *VALUES])
            )
        return line


def ended(line: list[str]) -> tuple[int | None, str]:
    """Exit code of a line, and its traceback if it had one, in which case there is no code."""
    printed = io.StringIO()
    code: int | None
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = run_command(line)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        return None, traceback.format_exc()
    finally:
        signal.alarm(0)
    if "Traceback" in printed.getvalue():
        return None, printed.getvalue()
    return code, printed.getvalue()[-400:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--number", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    os.environ.update(PYRO_ZF_CACHE=str(folder / "cache"), PYRO_ZF_OFFLINE="1")
    os.environ.pop("PYRO_ZF_DATA", None)
    warnings.simplefilter("ignore")

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        random_line = Lines(options.seed, prepared(folder))
    ends: collections.Counter[int | None] = collections.Counter()
    for _ in range(options.number):
        line = random_line()
        if not Path("sound").is_dir() or not Path("mine.h5").is_file():
            sys.exit("a command has removed the run or the data")
        code, text = ended(line)
        ends[code] += 1
        if code not in ENDS:
            print(f"{shlex.join(line)}\n{text}", file=sys.__stdout__, flush=True)
    print(", ".join(f"exit code {code}: {number}" for code, number in ends.most_common()))
    sys.exit(any(code not in ENDS for code in ends))


if __name__ == "__main__":
    main()
