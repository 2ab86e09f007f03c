"""The whole job in a few minutes: shards, stream, training, retrieval figures, and a page to look at.

    python -m pipeline.demo                       # on a synthetic data set that it draws
    python -m pipeline.demo --csv train.csv       # on your own table and images

Prints and runs the same commands that you would, one after the other. Run again, it goes on where it stopped.
"""

import csv
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from pipeline.checks import check_at_least, local_path
from pipeline.cli import main
from pipeline.sharding.image_sources import open_image_source
from pipeline.sharding.spool import spool_tables
from pipeline.sharding.tables import TableFormat
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
    check_at_least(config, batch_size=1, epochs=1)
    begin = time.perf_counter()
    size, out = SHORT if config.short else FULL, local_path("--out", config.out)
    if config.csv:
        tables, root = _split_table(Path(config.csv), config.images, out / "data")
        images = ["--images", str(root)]
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


def _split_table(path: Path, images: str | None, folder: Path) -> tuple[dict[str, Path], Path]:
    """Split a table eight to one to one by a hash of the article, so that no article is in two splits.

    The tables, and the folder of their images.
    """
    with spool_tables([str(path)], TableFormat()) as table:
        rows = table.rows(np.arange(len(table)))
    split_of = {row.number: _split(row.image) for row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    tables = {split: folder / f"{split}.csv" for split in SPLITS}
    for split, target in tables.items():
        own = [row for row in rows if split_of[row.number] == split]
        if not own:
            raise UsageError(f"{path}: too few articles to split {len(rows)} rows into {', '.join(SPLITS)}")
        with open(target, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption", *own[0].other])
            writer.writerows([row.image, row.caption, *row.other.values()] for row in own)
    source = open_image_source([images] if images else [], [str(path)], [row.image for row in rows[:100]])
    return tables, path.parent / source.identity


def _split(image: str) -> str:
    """The split of an image: that of its article, where the name begins with a PMC id."""
    article = re.match(r"PMC\d+", image.rpartition("/")[2])
    share = float(uniforms(derive(*(article[0] if article else image).encode()), 1)[0])
    return "train" if share < 0.8 else "valid" if share < 0.9 else "test"


if __name__ == "__main__":
    main(demo, DemoConfig, "demo", __doc__ or "")
