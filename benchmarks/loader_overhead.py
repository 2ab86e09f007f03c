"""Microseconds of CPU time that the loader itself takes for a sample: all that is not decoding or tokenising.

    python benchmarks/loader_overhead.py
    python benchmarks/loader_overhead.py --image-bytes 94000 --workers 2 --samples 100000

Synthetic samples (random bytes for an image, a caption, a small JSON) on local disk, cached, go through a
decoder that does nothing. Each row adds a stage to the one above it and is measured by this process's CPU
time, so others on the machine do not matter much; what a row adds is the last column.

- order    the places of the samples, by arithmetic
- stream   their blocks fetched and handed on, sample by sample
- parse    checked and taken apart, on one thread
- loader   the whole loader: batches put together, threads, hand-over

The limit of a machine is one interpreter lock: this many microseconds a sample bound all decoding threads
together, whatever their number.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.loader import Loader
from shards import (
    Folder,
    Order,
    SampleStream,
    TrainingPlan,
    open_dataset,
    write_manifest,
    write_shard,
)

SHARD_SAMPLES = 2_000


class NoImages:
    """An image stage that decodes nothing."""

    uniforms = 22

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, data: memoryview, uniforms: Sequence[float], out: np.ndarray) -> None:
        """Leave `out` as it is."""


def write_dataset(folder: str, samples: int, image_bytes: int) -> None:
    """Shards of samples whose images are random bytes."""
    target, rng = Folder(folder), np.random.default_rng(0)
    image = rng.bytes(image_bytes)
    written = []
    for first in range(0, samples, SHARD_SAMPLES):
        content = (
            (
                f"{number:09d}",
                {
                    "jpg": image,
                    "txt": f"Axial contrast-enhanced CT of the chest, figure {number}.".encode(),
                    "json": json.dumps(
                        {"image": f"{number}.jpg", "row": number, "licence": "CC BY"}
                    ).encode(),
                },
            )
            for number in range(first, min(first + SHARD_SAMPLES, samples))
        )
        written.append(write_shard(target, f"bench-{first // SHARD_SAMPLES:06d}.tar", content))
    write_manifest(target, written, {})


def cpu_of(work: Callable[[], int]) -> float:
    """Microseconds of CPU time, of all threads, for each of the samples that `work` says it went through."""
    begin = time.process_time()
    samples = work()
    return 1e6 * (time.process_time() - begin) / samples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=40_000, help="samples of one measurement")
    parser.add_argument("--image-bytes", type=int, default=2_000, help="bytes of each image")
    parser.add_argument("--workers", type=int, default=2, help="decoding threads")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are reported")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, min(args.samples, 20_000), args.image_bytes)
        dataset = open_dataset(folder)
        order = Order(dataset.blocks.samples)
        plan = TrainingPlan(order, stop=args.samples)

        def run_order() -> int:
            return sum(1 for _ in plan.places())

        def run_stream() -> int:
            with SampleStream(dataset, plan) as stream:
                return sum(1 for _ in stream)

        def run_parse() -> int:
            with SampleStream(dataset, plan) as stream:
                return sum(1 for raw in stream if raw.read())

        def run_loader() -> int:
            with Loader(
                SampleStream(dataset, plan),
                batch_size=args.batch_size,
                images=NoImages(8),
                text=None,
                workers=args.workers,
            ) as loader:
                return sum(len(batch.keys) for batch in loader)

        rows = {"order": run_order, "stream": run_stream, "parse": run_parse, "loader": run_loader}
        measured: dict[str, list[float]] = {name: [] for name in rows}
        for round_number in range(args.rounds + 1):  # the first warms caches and does not count
            for name, work in rows.items():
                cost = cpu_of(work)
                if round_number:
                    measured[name].append(cost)
    before = 0.0
    print(f"{'up to':<10}{'µs/sample':>10}{'added':>10}")
    for name, costs in measured.items():
        cost = statistics.median(costs)
        print(f"{name:<10}{cost:>10.1f}{cost - before:>10.1f}")
        before = cost


if __name__ == "__main__":
    main()
