"""Builders of tables and images for the tests of `pipeline.shard`."""

import csv
import hashlib
import io
from collections.abc import Callable
from functools import partial
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
def start_shard(start, tmp_path):
    """`start_shard("--csv", table, …)`: the command, leader of a session, with its own scratch folder."""
    (tmp_path / "scratch").mkdir()
    return partial(start, "shard", TMPDIR=str(tmp_path / "scratch"))
