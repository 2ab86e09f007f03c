"""What every peer's script shares: the job it is given, the published crop, and how its rate is measured.

A peer's script runs in that peer's own environment: this module needs PyTorch and torchvision, nothing of the
project. It is called with `prepare` or `measure` and a job as JSON, and answers with one line of JSON.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE, BATCH = 224, 64


@dataclass(frozen=True)
class Row:
    """One sample: the file of its image, and its caption."""

    image: Path
    caption: str


@dataclass(frozen=True)
class Job:
    """What a peer is to prepare or to measure."""

    source: str  # folder with rows.jsonl, the images/ it names, and the same samples as shards/
    data: str  # where the peer's own format is, or goes to: a folder or an address such as s3://bucket/mds
    cache: str = ""  # an empty folder for a measurement
    workers: int = 0  # processes, or threads where the peer has them
    prefetch: int = 2  # batches that each worker makes ahead
    warm_up: float = 2  # seconds from the first batch on that do not count
    seconds: float = 20

    @property
    def remote(self) -> bool:
        """Whether the data is on S3."""
        return self.data.startswith("s3://")

    def tar_urls(self) -> list[str]:
        """The shards at `data` as webdataset takes them; from S3 by curl, which starts fastest."""
        server = os.environ.get("AWS_ENDPOINT_URL", "")
        folder = self.data.replace("s3:/", f"pipe:curl --silent --fail {server}", 1)
        return [f"{folder}/{shard.name}" for shard in self.shards()]

    def rows(self) -> list[Row]:
        """All samples."""
        lines = (Path(self.source) / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        images = Path(self.source) / "images"
        return [Row(images / image, caption) for image, caption in map(json.loads, lines)]

    def shards(self) -> list[Path]:
        """The shards, on local disk."""
        return sorted((Path(self.source) / "shards").glob("*.tar"))

    def loader_options(self) -> dict[str, Any]:
        """The options of a torch DataLoader that the workers make."""
        if not self.workers:
            return {"num_workers": 0}
        return {
            "num_workers": self.workers,
            "prefetch_factor": self.prefetch,
            "persistent_workers": True,
        }


def published_transform() -> Callable[[Any], Any]:
    """What the published code trains with: Pillow image to normalised float32 [3, SIZE, SIZE]."""
    from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomResizedCrop, ToTensor

    return Compose(
        [
            RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC),
            to_rgb,
            ToTensor(),
            Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )


def to_rgb(image: Any) -> Any:
    """The published code's conversion."""
    return image.convert("RGB")


def open_image(data: bytes) -> Any:
    """A Pillow image from its bytes."""
    from PIL import Image

    return Image.open(io.BytesIO(data))


def main(
    batches: Callable[[Job], Iterator[Sequence[Any]]], prepare: Callable[[Job], None] | None = None
) -> None:
    """Do what the command line says. `batches` gives (images, captions) without end."""
    action, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    if action == "prepare":
        if prepare:
            prepare(job)
        answer = {}
    else:
        answer = measure(batches, job)
    print(json.dumps(answer), flush=True)


def measure(batches: Callable[[Job], Iterator[Sequence[Any]]], job: Job) -> dict[str, float]:
    """Rate, processor time and start-up of a stream of batches.

    Workers deliver in bursts; both ends of the window are the first batch after a moment, so that they lie at
    the same place of a burst.
    """
    begin = time.perf_counter()
    stream = batches(job)
    check(next(stream))
    first = time.perf_counter()
    until(stream, first + job.warm_up)
    start, used = time.perf_counter(), cpu_seconds()
    samples = until(stream, start + job.seconds)
    seconds = time.perf_counter() - start
    return summary(samples, seconds, cpu_seconds() - used, first - begin)


def summary(samples: int, seconds: float, cpu: float, start_up: float) -> dict[str, float]:
    """A measurement as it is answered: samples per second, processor ms per sample, s to the first batch."""
    return {"rate": samples / seconds, "cpu_ms": 1000 * cpu / samples, "start_up": start_up}


def until(stream: Iterator[Sequence[Any]], moment: float) -> int:
    """Take batches up to the first that comes after a moment; the number of their samples."""
    samples = 0
    for images, _ in stream:
        samples += len(images)
        if time.perf_counter() >= moment:
            return samples
    raise SystemExit("the stream ended")


def check(batch: Sequence[Any]) -> None:
    """Refuse a batch that is not what everyone is to make."""
    images, captions = batch
    if tuple(images.shape) != (BATCH, 3, SIZE, SIZE) or len(captions) != BATCH:
        raise SystemExit(f"images {tuple(images.shape)}, {len(captions)} captions")
    if not all(isinstance(caption, str) for caption in captions):
        raise SystemExit(f"a caption is {captions[0]!r}")
    if not 0 < images.float().std() < 128:
        raise SystemExit("empty images")


def cpu_seconds() -> float:
    """Processor time of this process and all below it, those that ended included (Linux)."""
    ticks, processes = 0, [os.getpid()]
    for process in processes:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            children = [
                int(child)
                for task in Path(f"/proc/{process}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended: its parent has its time now
            continue
        ticks += sum(int(field) for field in fields[11:15])
        processes += children
    return ticks / os.sysconf("SC_CLK_TCK")
