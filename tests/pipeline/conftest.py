"""Builders of tables and images for the tests of `pipeline.shard`."""

import csv
import hashlib
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def hashes() -> Callable[[Path], dict[str, str]]:
    """`hashes(folder)`: every file below a folder and a hash of its bytes."""

    def hash_all(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return hash_all


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """`picture(colour, format, size)`: an image file's bytes."""

    def draw(colour: int = 0, format: str = "PNG", size: tuple[int, int] = (20, 20)) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", size, (colour % 256, 80, 90)).save(out, format)
        return out.getvalue()

    return draw


@pytest.fixture(scope="session")
def write_table() -> Callable[..., Path]:
    """`write_table(folder, rows, name)`: a CSV file of these rows; its path."""

    def write(folder: Path, rows: list[dict[str, str]], name: str = "train.csv") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return folder / name

    return write


@pytest.fixture
def small(tmp_path, picture, write_table) -> Path:
    """A table of 30 rows beside its images."""
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [{"image": f"{n}.png", "caption": f"caption {n}", "licence": f"CC {n}"} for n in range(30)]
    return write_table(tmp_path, rows)


@pytest.fixture
def start_shard(launch, tmp_path):
    """`start_shard("--csv", table, …)`: the command, leader of a session, with its own scratch folder."""
    launcher, environment = launch
    (tmp_path / "scratch").mkdir()
    started = []

    def start(*arguments: object) -> "subprocess.Popen[str]":
        job = subprocess.Popen(
            [*launcher(1, "shard"), *map(str, arguments)],
            cwd=tmp_path,
            env=environment(TMPDIR=str(tmp_path / "scratch")),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(job)
        return job

    yield start
    for job in started:
        for process in processes_of_session(job.pid):
            os.kill(process, 9)
        job.communicate()


@pytest.fixture(scope="session")
def session_processes() -> Callable[[int], list[int]]:
    """`session_processes(pid)`: the processes alive in the session that a started command leads."""
    return processes_of_session


def processes_of_session(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found
