"""The whole job in a few minutes: shards, stream, training, retrieval figures, and a page to look at.

    python -m pipeline.demo                       # on a synthetic data set that it draws
    python -m pipeline.demo --csv train.csv       # on your own table and images

Prints and runs the same commands that you would, one after the other. Run again, it goes on where it stopped.
"""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from pipeline.cli import main
from shards import DataError, UsageError
from shards.hashing import derive, uniforms

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Size:
    """How much a demo does: samples drawn for each split, and passes over the training split."""

    train: int
    valid: int
    test: int
    epochs: int


FULL, SHORT = Size(3200, 160, 320, 8), Size(640, 64, 160, 3)


@dataclass(frozen=True)
class DemoConfig:
    """Flags of `pipeline.demo`."""

    csv: Annotated[str | None, tyro.conf.arg(aliases=["--table"])] = None
    """Your own table of images and captions; without it, a synthetic data set is drawn."""
    images: Annotated[str | None, tyro.conf.arg(aliases=["--image-dir"])] = None
    """Folder of your images; without it, the table's own folder or the `images` beside it."""
    out: str = "demo"
    """Folder for everything the demo writes."""
    model: str = "tiny"
    """Name of a model config, or the path of one (JSON)."""
    batch_size: int = 32
    """Samples in a batch."""
    epochs: int | None = None
    """Passes over the training data; without it, 8, or 3 with --short."""
    short: bool = False
    """Do less: a smaller data set and fewer epochs, in about a minute."""


def demo(config: DemoConfig) -> None:
    """Prepare the tables, then run the commands."""
    begin = time.perf_counter()
    size, out = SHORT if config.short else FULL, Path(config.out)
    if config.csv:
        tables = _split_table(Path(config.csv), out / "data")
        images = ["--images", config.images or str(_image_folder(Path(config.csv)))]
    else:
        tables, images = _draw(size, out / "data"), []
    for command in _commands(config, size, tables, images, out):
        _run(command)
    print(f"\nLook at {out / 'contact_sheet.html'} in a browser: queries with their best matches.")
    print(f"The whole job took {time.perf_counter() - begin:.0f} s; everything is in {out}/")


def _commands(
    config: DemoConfig, size: Size, tables: dict[str, Path], images: list[str], out: Path
) -> Iterator[list[str]]:
    """The job, command by command."""
    for split, table in tables.items():
        yield ["pipeline.shard", "--csv", str(table), *images, "--out", str(out / "shards" / split)]
    shards = {split: str(out / "shards" / split) for split in SPLITS}
    yield ["pipeline.stream", "--data", shards["train"], "--batch-size", str(config.batch_size)]
    yield [
        *("pipeline.train", "--train-data", shards["train"], "--val-data", shards["valid"], "--mlm"),
        *("--model", config.model, "--batch-size", str(config.batch_size)),
        *("--epochs", str(config.epochs or size.epochs), "--lr", "1e-3", "--log-every", "50"),
        *("--logs", str(out / "runs"), "--name", "demo", "--resume", "auto"),
    ]
    yield [
        *("pipeline.evaluate", "--data", shards["test"]),
        *("--checkpoint", str(out / "runs" / "demo" / "checkpoints" / "latest")),
        *("--contact-sheet", str(out / "contact_sheet.html")),
    ]


def _run(arguments: list[str]) -> None:
    """Print a command and run it; DataError where it fails."""
    print(f"\n$ python -m {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *arguments], check=False)
    if done.returncode:
        raise DataError(f"the demo stopped, since this command failed (exit code {done.returncode})")


def _draw(size: Size, folder: Path) -> dict[str, Path]:
    """The synthetic data set's tables, drawn unless they are there."""
    from pipeline.synthetic import write_synthetic_dataset

    tables = {split: folder / f"{split}.csv" for split in SPLITS}
    counts = {split: getattr(size, split) for split in SPLITS}
    print(f"Drawing {sum(counts.values()):,} synthetic figures with captions into {folder} ...", flush=True)
    write_synthetic_dataset(folder, counts)
    return tables


def _image_folder(table: Path) -> Path:
    """Where a table's images are when no flag says so: in `images` beside it, or else beside it."""
    return table.parent / "images" if (table.parent / "images").is_dir() else table.parent


def _split_table(path: Path, folder: Path) -> dict[str, Path]:
    """Split a table eight to one to one by a hash of the article, so that no article is in two splits."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a table: {error}") from error
    if "image" not in table.columns or "caption" not in table.columns:
        listed = ", ".join(repr(column) for column in table.columns)
        raise UsageError(f"{path}: the demo needs columns 'image' and 'caption'; there are {listed}")
    articles = table["image"].map(lambda name: (re.match(r"(.*/)?(PMC\d+)", name) or [name] * 3)[2])
    where = articles.map(lambda article: float(uniforms(derive(*article.encode()), 1)[0]))
    bounds = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
    folder.mkdir(parents=True, exist_ok=True)
    tables = {}
    for split, (low, high) in bounds.items():
        rows = table[(where >= low) & (where < high)]
        if rows.empty:
            raise UsageError(
                f"{path}: too few articles to split {len(table)} rows into train, valid and test"
            )
        tables[split] = folder / f"{split}.csv"
        rows.to_csv(tables[split], index=False)
    return tables


if __name__ == "__main__":
    main(demo, DemoConfig, "demo", __doc__ or "")
