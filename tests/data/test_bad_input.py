"""Invalid data: a one-line error, exit code 2, no partial files, and valid files are still used."""

from __future__ import annotations

import gc
import hashlib
import http.server
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from pyro_zf.cli import main
from pyro_zf.data import DataError, load_wav, make_batches
from pyro_zf.data.download import fetch
from tests.data.conftest import Serve, tone, write_sounds


def truncated(path: Path) -> None:
    soundfile.write(path, tone(1.0), 16000)
    path.write_bytes(path.read_bytes()[:5000])


def mp3(path: Path) -> None:
    soundfile.write(path, tone(1.0), 16000, format="MP3")


def not_finite(path: Path) -> None:
    soundfile.write(
        path, np.where(np.arange(16000) == 9, np.nan, tone(1.0)), 16000, subtype="FLOAT"
    )


BAD_SOUNDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "bad.wav is truncated: it has 5000 of 32044 bytes"),
    "mp3": (mp3, "bad.wav is (MP3 despite its name|not a sound file.*it looks like an MP3)"),
    "empty": (lambda p: p.write_bytes(b""), r"bad.wav is empty \(0 bytes\)"),
    "text": (lambda p: p.write_text("hello " * 100), "bad.wav is not a sound file"),
    "no samples": (lambda p: soundfile.write(p, np.zeros(0), 16000), "bad.wav has no samples"),
    "nan": (not_finite, "bad.wav contains samples that are not finite"),
}


@pytest.mark.parametrize("which", BAD_SOUNDS)
def test_a_bad_sound_is_skipped_and_reported(
    which: str, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, message = BAD_SOUNDS[which]
    folder = write_sounds(tmp_path / "sounds", number=5)
    make(folder / "bad.wav")
    data = load_wav(folder)
    assert data.findings[0].startswith("5 recordings, 80,000 samples")
    assert data.findings[1].startswith("1 files were skipped; the first: bad.wav")
    assert len(caplog.records) == 1
    assert load_wav(folder).findings == data.findings, "findings are repeated for prepared data"

    alone = tmp_path / "alone"
    for i in range(3):
        (alone / str(i)).mkdir(parents=True)
        make(alone / str(i) / "bad.wav")
    with pytest.raises(
        DataError, match=f"no sound file in .* can be used \\(3 found\\); .*{message}"
    ) as error:
        load_wav(alone)
    assert "\n" not in str(error.value)
    assert sorted(p.name[:4] for p in (cache / "prepared").iterdir()) == [".loc", "wav-"]


def nothing(path: Path) -> None:
    path.mkdir()


def no_sounds(path: Path) -> None:
    path.mkdir()
    for name in ("a.txt", "b.txt", "c.jpg"):
        (path / name).write_text("x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "no sound files in {} (found nothing); supported suffixes are .wav, .flac"),
        (
            no_sounds,
            "no sound files in {} (found 3 files (2 .txt, 1 .jpg)); supported suffixes are",
        ),
        (lambda p: None, "{} is neither a folder nor a zip archive of sound files"),
        (lambda p: write_sounds(p, 2), "2 sound files cannot be split into"),
        (lambda p: write_sounds(p, 4, seconds=0.01), "no sequence is left for the train split"),
    ],
)
def test_the_command_ends_with_2(
    make: Callable[[Path], object], message: str, tmp_path: Path, cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "sounds"
    make(folder)
    run = tmp_path / "run"
    arguments = [
        "--dataset",
        "wav",
        "--data",
        str(folder),
        "--max-updates",
        "1",
        "--output-dir",
        str(run),
    ]
    assert main(["train", *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message.format(folder) in errors[0]
    assert not run.exists()
    assert main(["prepare", "wav", "--data", str(folder)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "timti"], "error: --dataset timti: must be one of mnist, timit"),
        (["prepare", "timti"], "did you mean timit?"),
        (["prepare", "wav"], "--dataset wav needs --data, the path of a folder of sound files"),
        (
            ["train", "--dataset", "text"],
            "--dataset text needs --data, the path of a UTF-8 text file",
        ),
        (
            ["train", "--dataset", "ptb", "--protocol", "srnn"],
            "--protocol is an option of timit, blizzard, imdb, not of --dataset ptb",
        ),
        (["train", "--dataset", "timit", "--protocol", "vrnn"], "TIMIT supports default and srnn"),
        (["train", "--dataset", "wav", "--data-dir", "x"], "use --data for your own files"),
        (
            ["train", "--dataset", "mnist", "--data", "x"],
            "--data is an option of wav, text, hdf5, not of --dataset mnist",
        ),
        (
            ["train", "--dataset", "timit", "--segment", "0"],
            "--segment must be at least 1, got 0",
        ),
        (
            ["train", "--dataset", "imdb", "--vocabulary-size", "0"],
            "--vocabulary-size must be at least 1",
        ),
        (["train", "--dataset", "mnist", "--workers", "-1"], "--workers must not be negative"),
        (["train", "--dataset", "blizzard"], "no Blizzard in "),
        (["train", "--dataset", "imdb"], "aclImdb_v1.tar.gz is not in"),
        (["train", "--dataset", "imdb", "--data-dir", "."], "no reviews in"),
    ],
)
def test_wrong_settings(
    arguments: list[str], message: str, tmp_path: Path, cache: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    timit = tmp_path / "timit" / "x"
    timit.mkdir(parents=True)
    monkeypatch.setenv("PYRO_ZF_DATA", str(tmp_path))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


# The cache


def damaged_files(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def damaged_notes(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["notes"] = "{half"


def another_format(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["format"] = 0


@pytest.mark.parametrize(
    "damage", [damaged_files, damaged_notes, another_format, lambda p: p.write_bytes(b"")]
)
def test_a_damaged_cache_is_made_anew(
    damage: Callable[[Path], object], tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_sounds(tmp_path / "sounds")
    before = load_wav(folder)
    findings, row = before.findings, before.train[0]  # type: ignore[index]
    del before  # close the file that is open in this process
    gc.collect()
    (path,) = (cache / "prepared").glob("*.h5")
    damage(path)
    after = load_wav(folder)
    assert "is damaged or has another format: it is prepared again" in caplog.text
    assert after.findings == findings
    np.testing.assert_array_equal(after.train[0], row)  # type: ignore[index]


def test_flipped_bits_are_found(tmp_path: Path, cache: Path) -> None:
    folder = write_sounds(tmp_path / "sounds")
    load_wav(folder)
    (path,) = (cache / "prepared").glob("*.h5")
    with h5py.File(path) as file:
        values = file["train/values"]
        place = values.id.get_chunk_info(0).byte_offset + 100
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    for workers in (0, 2):
        with pytest.raises(
            DataError, match="is damaged: delete it, and it will be prepared again"
        ) as error:
            list(make_batches(load_wav(folder).train, 4, workers=workers))
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)


def in_child(act: Callable[[], object]) -> str:
    """Error raised by ``act`` in a child process, where limits and rights can be restricted."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        message = "nothing was raised"
        try:
            act()
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(writing, message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as file:
        return file.read()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("room", [100_000, 20_000_000])
def test_a_full_disk(room: int, tmp_path: Path, cache: Path) -> None:
    folder = write_sounds(tmp_path / "sounds", number=10, seconds=30.0)

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))  # maximum size of a file
        load_wav(folder)

    message = in_child(act)
    assert message.startswith("DataError: could not write prepared data to ")
    assert "free some disk space, or specify another folder with $PYRO_ZF_CACHE" in message
    assert "\n" not in message
    assert [p.name for p in (cache / "prepared").iterdir()] == [".locks"], "no partial files"
    left = cache / "prepared" / ".wav-{}.killed.part"
    key = load_wav(folder).source.key
    (cache / "prepared" / f"wav-{key}.h5").unlink()
    Path(str(left).format(key)).touch()
    assert load_wav(folder).findings[0].startswith("10 recordings"), "a later attempt succeeds"
    names = sorted(p.name for p in (cache / "prepared").iterdir())
    assert names == [".locks", f"wav-{key}.h5"], "files of a killed process are removed"
    assert (cache / "prepared" / names[1]).stat().st_size < 11_000_000, (
        "unused space is not allocated"
    )
    mode = (cache / "prepared" / names[1]).stat().st_mode & 0o777
    assert mode == 0o666 & ~umask(), "the cache can be shared with others"


def test_no_permission(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_sounds(tmp_path / "sounds")
    with monkeypatch.context() as patch:  # without root, late imports may fail
        patch.setenv("PYRO_ZF_CACHE", str(tmp_path / "other"))
        load_wav(folder)
    cache.mkdir()
    cache.chmod(0o555)
    if os.geteuid() == 0:  # the folder must be accessible without root
        top = Path(tempfile.gettempdir())
        for path in [folder, *folder.parents]:
            if path == top:
                break
            path.chmod(path.stat().st_mode | 0o055)

    def act() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        load_wav(folder)

    message = in_child(act)
    assert message.startswith("DataError: no permission to write prepared data to "), message
    assert "$PYRO_ZF_CACHE" in message
    assert "\n" not in message


def test_two_processes_prepare_once(tmp_path: Path, cache: Path) -> None:
    folder = write_sounds(tmp_path / "sounds", number=40, seconds=2.0)
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pyro_zf.data import load_wav, audio, store\n"
        "build = store._build\n"
        "def counted(path, make):\n"
        "    Path(sys.argv[2], f'built{time.time_ns()}').touch()\n"
        "    time.sleep(1)\n"
        "    return build(path, make)\n"
        "store._build = counted\n"
        "print(load_wav(sys.argv[1]).findings[0])\n"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert set(said) == {"40 recordings, 1,280,000 samples (1.3 minutes at 16000 Hz)\n"}
    assert len(list(tmp_path.glob("built*"))) == 1
    assert len(list((cache / "prepared").glob("*.h5"))) == 1


# Downloads


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Closes the connection after 40,000 bytes and supports range requests."""

    ranges: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range")
        type(self).ranges.append(asked)
        first = int(asked[6:-1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first : first + 40_000])
        self.close_connection = True


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    monkeypatch.setenv("PYRO_ZF_OFFLINE", "0")
    folder = tmp_path / "served"
    folder.mkdir()
    content = np.random.default_rng(0).bytes(100_000)
    (folder / "data.bin").write_bytes(content)
    return folder, hashlib.sha256(content).hexdigest()


def test_a_broken_connection_is_resumed(
    served: tuple[Path, str], serve: Serve, tmp_path: Path
) -> None:
    folder, sha256 = served
    Flaky.ranges.clear()
    path = fetch([serve(folder, Flaky) + "data.bin"], sha256, tmp_path / "to", "data.bin")
    assert path.read_bytes() == (folder / "data.bin").read_bytes()
    places = [int(r[6:-1]) if r else 0 for r in Flaky.ranges]
    assert places[0] == 0
    assert all(30_000 < b - a <= 40_000 for a, b in itertools.pairwise(places))


def test_the_download_of_a_killed_process_is_resumed(
    served: tuple[Path, str], serve: Serve, tmp_path: Path
) -> None:
    folder, sha256 = served
    content = (folder / "data.bin").read_bytes()
    to = tmp_path / "to"
    for left, ranges in ((content[:70_000], "bytes=70000-"), (b"x" * 70_000, "bytes=70000-")):
        to.mkdir(exist_ok=True)
        (to / f".data.bin.{sha256[:8]}.partial").write_bytes(left)
        (to / "data.bin").unlink(missing_ok=True)
        Flaky.ranges.clear()
        path = fetch([serve(folder, Flaky) + "data.bin"], sha256, to, "data.bin")
        assert path.read_bytes() == content
        assert Flaky.ranges[0] == ranges
        assert [p.name for p in to.iterdir() if p.name != ".locks"] == ["data.bin"]


def test_a_wrong_checksum_and_then_a_mirror(
    served: tuple[Path, str], serve: Serve, tmp_path: Path
) -> None:
    folder, sha256 = served
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.bin").write_bytes(b"something else")
    wrong, right = (serve(f) + "data.bin" for f in (other, folder))
    with pytest.raises(
        DataError, match=r"its SHA-256 does not match the published one\); to install it manually"
    ):
        fetch([wrong], sha256, tmp_path / "to", "data.bin")
    assert [p.name for p in (tmp_path / "to").iterdir()] == [".locks"]
    assert fetch([wrong, right], sha256, tmp_path / "to", "data.bin").stat().st_size == 100_000


def test_a_full_disk_while_downloading(
    served: tuple[Path, str], serve: Serve, tmp_path: Path
) -> None:
    folder, sha256 = served
    url = serve(folder) + "data.bin"

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        fetch([url], sha256, tmp_path / "to", "data.bin")

    message = in_child(act)
    assert message.startswith("DataError: could not download data.bin (")
    assert "File too large" in message
    assert [p.name for p in (tmp_path / "to").iterdir()] == [".locks"]


def test_one_process_downloads_and_the_other_waits(
    served: tuple[Path, str], serve: Serve, tmp_path: Path
) -> None:
    folder, sha256 = served
    asked: list[str] = []

    class Counting(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            threading.Event().wait(0.5)
            super().do_GET()

    url = serve(folder, Counting) + "data.bin"
    program = (
        "import sys; from pathlib import Path; from pyro_zf.data.download import fetch\n"
        "print(fetch([sys.argv[1]], sys.argv[2], Path(sys.argv[3]), 'data.bin').stat().st_size)\n"
    )
    command = [sys.executable, "-c", program, url, sha256, str(tmp_path / "to")]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in processes] == ["100000\n"] * 2
    assert len(asked) == 1
