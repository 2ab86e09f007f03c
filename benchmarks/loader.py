"""Samples/s of the loader against its peers and its limit, on real figures, interleaved in one run.

    python benchmarks/loader.py --csv train.csv --images images/            # table on the console
    python benchmarks/loader.py --csv train.csv --images images/ --rounds 5 --threads 2

Everyone makes 224-pixel random resized crops (bicubic, antialiased, scale 0.9 to 1) of the same figures,
repeated to at least 5,000 samples, batch 64, on local disk:

- loader      this project's, from shards
- csv         torch DataLoader over the table, Pillow and torchvision transforms: how the published code reads
- webdataset  the webdataset package on the same shards, Pillow and torchvision transforms
- limit       the loader's decode function alone, in a thread pool, on images held in memory

Peers are measured at several worker counts and the best is reported. They hand on float32 tensors, as they do
in use; the loader hands on uint8 and normalises on the device.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomResizedCrop, ToTensor

from pipeline.data import LoaderOptions, training_loader
from pipeline.decode import CROP_UNIFORMS, TrainImages
from pipeline.topology import Topology
from pmc_clip.transforms import MEAN, STD
from shards import Folder, Order, open_dataset, write_manifest, write_shard

SIZE, BATCH = 224, 64


def to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def published_transform() -> Compose:
    crop = RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC)
    return Compose([crop, to_rgb, ToTensor(), Normalize(MEAN, STD)])


class CsvDataset(Dataset):
    """Rows of the table; image opened from its file, as the published code does."""

    def __init__(self, rows: list[tuple[Path, str]]) -> None:
        self.rows, self.transform = rows, published_transform()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        path, caption = self.rows[index]
        return self.transform(Image.open(path)), caption


def take(batches: Iterator, samples: int) -> int:
    """Read batches until `samples` samples were seen."""
    seen = 0
    for batch in batches:
        seen += len(batch[1] if isinstance(batch, (tuple, list)) else batch.keys)
        if seen >= samples:
            break
    return seen


def csv_peer(rows: list[tuple[Path, str]], workers: int, samples: int) -> int:
    loader = DataLoader(CsvDataset(rows), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    return take(iter(loader), samples)


def webdataset_peer(urls: list[str], workers: int, samples: int) -> int:
    transform = published_transform()
    stream = (
        wds.WebDataset(
            urls, shardshuffle=100, nodesplitter=wds.split_by_node, workersplitter=wds.split_by_worker
        )
        .shuffle(1000)
        .decode("pilrgb", handler=wds.warn_and_continue)
        .to_tuple("jpg;png;gif", "txt")
        .map_tuple(transform, lambda text: text)
        .batched(BATCH, partial=False)
    )
    return take(iter(wds.WebLoader(stream, batch_size=None, num_workers=workers)), samples)


def ours(address: str, threads: int, samples: int) -> int:
    dataset = open_dataset(address)
    with training_loader(
        dataset,
        Order(dataset.blocks.samples),
        Topology(),
        global_batch=BATCH,
        start=0,
        stop=samples // BATCH * BATCH,
        images=TrainImages(SIZE),
        text=None,
        options=LoaderOptions(threads, 2**29),
    ) as loader:
        return take(iter(loader), samples)


def limit(images: list[bytes], threads: int, samples: int) -> int:
    stage = TrainImages(SIZE)
    rng = np.random.default_rng(0)
    jobs = [(images[i % len(images)], rng.random(CROP_UNIFORMS).tolist()) for i in range(samples)]
    out = np.empty((threads * 4, SIZE, SIZE, 3), np.uint8)

    def decode(job: tuple[int, tuple[bytes, list[float]]]) -> None:
        number, (data, uniforms) = job
        stage(memoryview(data), uniforms, out[number % len(out)])

    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        for _ in pool.map(decode, enumerate(jobs), chunksize=1):
            pass
    return samples


def write_shards(rows: list[tuple[Path, str]], folder: str) -> list[str]:
    target, written = Folder(folder), []
    for first in range(0, len(rows), 500):
        samples = (
            (
                f"{n:09d}",
                {
                    rows[n][0].suffix[1:].lower().replace("jpeg", "jpg"): rows[n][0].read_bytes(),
                    "txt": rows[n][1].encode(),
                },
            )
            for n in range(first, min(first + 500, len(rows)))
        )
        written.append(write_shard(target, f"bench-{first // 500:06d}.tar", samples))
    write_manifest(target, written, {})
    return [f"{folder}/{shard.record.name}" for shard in written]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", required=True, nargs="+", help="tables with columns image and caption")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are reported")
    parser.add_argument("--samples", type=int, default=2560, help="samples of one measurement")
    parser.add_argument("--threads", type=int, default=2, help="decoding threads of the loader and the limit")
    parser.add_argument(
        "--peer-workers", type=int, nargs="+", default=[1, 2, 3, 4], help="worker counts to try"
    )
    args = parser.parse_args()
    figures = [
        (Path(args.images) / row["image"], row["caption"])
        for table in args.csv
        for row in csv.DictReader(Path(table).read_text(encoding="utf-8").splitlines(keepends=True))
    ]
    rows = figures * -(-5000 // len(figures))
    in_memory = [path.read_bytes() for path, _ in figures]
    rng = np.random.default_rng(0)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    with tempfile.TemporaryDirectory() as folder:
        urls = write_shards(rows, folder)
        runs: dict[str, Callable[[], int]] = {
            "loader": lambda: ours(folder, args.threads, args.samples),
            "limit": lambda: limit(in_memory, args.threads, args.samples),
        }
        for workers in args.peer_workers:
            runs[f"csv, {workers} workers"] = lambda w=workers: csv_peer(rows, w, args.samples)
            runs[f"webdataset, {workers} workers"] = lambda w=workers: webdataset_peer(urls, w, args.samples)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for round_number in range(args.rounds + 1):  # the first warms caches and does not count
            for name, run in runs.items():
                begin = time.perf_counter()
                seen = run()
                if round_number:
                    rates[name].append(seen / (time.perf_counter() - begin))
    loader = rates["loader"]
    print(
        f"{len(rows):,} samples, {args.samples:,} a measurement, median of {args.rounds} interleaved rounds"
    )
    print(f"{'':<24}{'samples/s':>10}{'loader / this':>16}")
    for name, values in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(loader, values, strict=True))
        print(f"{name:<24}{statistics.median(values):>10,.0f}{ratio:>15.2f}x")


if __name__ == "__main__":
    main()
