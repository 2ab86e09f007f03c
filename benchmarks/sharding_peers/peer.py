"""What every peer's script shares: the job it is given, and how it says how long the work took.

A peer's script runs in that peer's own environment, so this module needs nothing but the standard library.
"""

import argparse
import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One sample to be: its key, the file of its image, and its caption."""

    key: str
    image: Path
    caption: str

    @property
    def extension(self) -> str:
        """The extension of its image as shards have it."""
        return self.image.suffix[1:].lower().replace("jpeg", "jpg")

    @property
    def described(self) -> bytes:
        """The sample's description, with the fields that the command of this project writes."""
        return json.dumps({"image": self.image.name, "row": int(self.key)}).encode()


@dataclass(frozen=True)
class Job:
    """What a peer is to pack and how."""

    rows: list[Row]
    out: Path
    processes: int
    verify: bool  # whether every image is to be decoded once
    samples_per_shard: int

    def part(self, process: int) -> list[Row]:
        """The rows of one process among `processes`."""
        return self.rows[process :: self.processes]


def read_job() -> Job:
    """The job that the command line describes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--verify", choices=("full", "none"), required=True)
    parser.add_argument("--samples-per-shard", type=int, required=True)
    args = parser.parse_args()
    rows = []
    with open(args.table, encoding="utf-8") as table:
        for number, line in enumerate(table):
            row = json.loads(line)
            rows.append(Row(f"{number:09d}", args.images / row["image"], row["caption"]))
    args.out.mkdir(parents=True, exist_ok=True)
    return Job(rows, args.out, args.processes, args.verify == "full", args.samples_per_shard)


def read_image(row: Row, *, verify: bool) -> bytes:
    """The image's bytes, fully decoded once with Pillow where that is asked for."""
    data = row.image.read_bytes()
    if verify:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            image.load()
    return data


@contextmanager
def timed() -> Iterator[None]:
    """Print, as the last line of the output, the seconds that the work inside took."""
    begin = time.perf_counter()
    yield
    print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)
