"""The whole job in a few minutes: shards, stream, training, retrieval figures, and a page to look at.

    python -m pipeline.demo                       # on a synthetic data set that it draws
    python -m pipeline.demo --csv train.csv       # on your own table and images

Prints and runs the same commands that you would, one after the other. Run again, it goes on where it stopped.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.checks import check_at_least, local_path
from pipeline.cli import main
from shards import DataError, UsageError

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

    csv: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--table"])] = ()
    """Your own tables of images and captions; without them, a synthetic data set is drawn."""
    images: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--image-dir"])] = ()
    """Where your images are, as for `pipeline.shard`."""
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
    packing = _pack_own(config, out / "shards") if config.csv else _pack_drawn(size, out)
    for command in (*packing, *_commands(config, size, out)):
        _run(command)
    print(
        f"\nLook at {out / 'evaluation' / 'report.html'} in a browser: the figures, and what queries found."
    )
    print(f"The whole job took {time.perf_counter() - begin:.0f} s; everything is in {out}/")


def _pack_own(config: DemoConfig, out: Path) -> list[list[str]]:
    """The command that packs the user's table, split by article; an image without a PMC id is on its own."""
    images = ["--images", *config.images] if config.images else []
    return [
        [
            *("pipeline.shard", "--csv", *config.csv, *images, "--out", str(out)),
            *("--split", "train=0.8,valid=0.1,test=0.1", "--group-pattern", r"PMC\d+|.*"),
        ]
    ]


def _pack_drawn(size: Size, out: Path) -> Iterator[list[str]]:
    """Draw a data set; the commands that pack its splits."""
    for split, table in _draw(size, out / "data").items():
        yield ["pipeline.shard", "--csv", str(table), "--out", str(out / "shards" / split)]


def _commands(config: DemoConfig, size: Size, out: Path) -> Iterator[list[str]]:
    """What follows the packing, command by command."""
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
        *("--out", str(out / "evaluation")),
    ]


def _run(arguments: list[str]) -> None:
    """Print a command and run it; DataError where it fails."""
    print(f"\n$ python -m {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *arguments], check=False)
    if done.returncode:
        failure = UsageError if done.returncode == 2 else DataError
        raise failure(f"the demo stopped, since this command failed (exit code {done.returncode})")


def _draw(size: Size, folder: Path) -> dict[str, Path]:
    """The synthetic data set's tables, drawn unless they are there."""
    from pipeline.synthetic import write_synthetic_dataset

    tables = {split: folder / f"{split}.csv" for split in SPLITS}
    counts = {split: getattr(size, split) for split in SPLITS}
    print(f"Drawing {sum(counts.values()):,} synthetic figures with captions into {folder} ...", flush=True)
    write_synthetic_dataset(folder, counts)
    return tables


if __name__ == "__main__":
    main(demo, DemoConfig, "demo", __doc__ or "")
