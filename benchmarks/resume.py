"""Seconds from a process's start to its first batch, at any position of a data set of ten million samples.

    python benchmarks/resume.py --shards shards/train --scratch /tmp/resume
    python benchmarks/resume.py --shards shards/train --scratch /tmp/resume --cold
    python benchmarks/resume.py --shards shards/train --scratch /tmp/resume --s3 s3://bucket/resume

Makes, in the scratch folder (kept for the next run), a few shards of `--shard-samples` samples from the real
ones in `--shards`, and a manifest that repeats them up to `--samples`: on local disk under hard links, on S3
under their own few names. Then it starts a fresh process for each measurement, at the first position, in the
middle of an epoch and near the end of the fourth one, and splits its time:

- imports  Python, torch and this project's modules
- open     manifest, index and checksums read and checked
- order    blocks cut, the epoch's permutation, the first visits and places
- batch    the first batch: reads, decoding, and the start of the loader's threads

`ready` is their sum without the imports: what a process that has its modules needs; `cpu` is the processor
time of all its threads meanwhile, which other work on the machine hardly changes. `--cold` drops the page
cache before each start (as root). S3 is whatever AWS_ENDPOINT_URL and its like in the environment name.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice, pairwise
from pathlib import Path

from shards import Dataset, Folder, Mixture, WrittenShard, open_dataset, write_manifest, write_shard
from shards.manifest import MANIFEST

LARGE_SHARDS = 4
PHASES = ("imports", "open", "order", "batch")


def main() -> None:
    """Make the data where it is not there, measure, and print a table."""
    arguments = parse()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.start, arguments.batch_size)))
        return
    local = make_local(arguments)
    rows = [("local, warm", local, False)]
    if arguments.cold:
        rows.append(("local, cold", local, True))
    if arguments.s3:
        rows.append(("S3", make_remote(arguments), False))
    start_fresh(local, 0, arguments.batch_size)  # brings code and tables into memory
    print(
        f"{'where':12} {'position':>12}  "
        + "".join(f"{name:>9}" for name in (*PHASES, "ready", "all", "cpu"))
    )
    for where, address, cold in rows:
        for position in (0, arguments.samples // 2, 4 * arguments.samples - 10_000):
            report(where, address, position, cold=cold, arguments=arguments)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", help="folder of shards of real samples, by pipeline.shard")
    parser.add_argument("--scratch", type=Path, help="folder for the large data set; kept")
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--shard-samples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="measure with an empty page cache, too")
    parser.add_argument("--s3", help="address to put the data set at, and to measure there, too")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.measure and not (arguments.shards and arguments.scratch):
        parser.error("--shards and --scratch are needed")
    return arguments


def make_local(arguments: argparse.Namespace) -> str:
    """The large data set on local disk, its shards hard links to a few files; its address."""
    folder = arguments.scratch / f"{arguments.samples}-in-{arguments.shard_samples}s"

    def link(shard: WrittenShard, number: int) -> str:
        name = f"train-{number:06d}.tar"
        (folder / name).unlink(missing_ok=True)
        os.link(folder / shard.record.name, folder / name)
        return name

    make_dataset(Folder(folder), arguments, link)
    return str(folder)


def make_remote(arguments: argparse.Namespace) -> str:
    """The same on S3, where a few objects stand for all shards."""
    make_dataset(Folder(arguments.s3), arguments, lambda shard, _: shard.record.name)
    return str(arguments.s3)


def make_dataset(
    folder: Folder, arguments: argparse.Namespace, name_copy: Callable[[WrittenShard, int], str]
) -> None:
    """A few shards of real samples, and a manifest that repeats them under names that `name_copy` gives."""
    if MANIFEST in folder.names():
        return
    source = open_dataset(arguments.shards)
    samples = cycle([members_of(source, number) for number in range(len(source))])
    large = []
    for file in range(LARGE_SHARDS):
        fresh = ((f"{file:02d}{place:07d}", next(samples)) for place in range(arguments.shard_samples))
        large.append(write_shard(folder, f"large-{file}.tar", fresh))
    copies = []
    for number, shard in enumerate(islice(cycle(large), arguments.samples // arguments.shard_samples)):
        copies.append(replace(shard, record=replace(shard.record, name=name_copy(shard, number))))
    write_manifest(folder, copies, {"made_by": "benchmarks/resume.py"})


def members_of(source: Dataset, number: int) -> dict[str, bytes]:
    """A real sample's members, by extension."""
    return {name: bytes(data) for name, data in source.read_sample(number).members.items()}


def report(where: str, address: str, position: int, *, cold: bool, arguments: argparse.Namespace) -> None:
    """Measure one position some times over, and print the medians."""
    rounds = []
    for _ in range(arguments.rounds):
        if cold:
            subprocess.run(["sync"], check=True)
            Path("/proc/sys/vm/drop_caches").write_text("3")
        rounds.append(start_fresh(address, position, arguments.batch_size))
    *medians, cpu = (statistics.median(times[name] for times in rounds) for name in (*PHASES, "cpu"))
    cells = [*medians, sum(medians[1:]), sum(medians), cpu]
    print(f"{where:12} {position:12,}  " + "".join(f"{cell:8.2f}s" for cell in cells), flush=True)


def start_fresh(address: str, position: int, batch_size: int) -> dict[str, float]:
    """Seconds of each phase in a process of its own, and its processor time after the imports."""
    begin = time.monotonic()
    command = [
        sys.executable,
        __file__,
        "--measure",
        address,
        "--start",
        position,
        "--batch-size",
        batch_size,
    ]
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True)
    marks, cpu = json.loads(done.stdout)
    phases = (after - before for before, after in pairwise([begin, *marks]))
    return dict(zip(PHASES, phases, strict=True)) | {"cpu": cpu}


def measure(address: str, start: int, batch_size: int) -> tuple[list[float], float]:
    """When each phase ended, by the clock that all processes share, and processor time after the imports."""
    from pipeline.data import make_options, training_loader
    from pipeline.decode import TrainImages
    from pipeline.topology import Topology

    topology = Topology()
    marks, before = [time.monotonic()], time.process_time()
    dataset = open_dataset(address)
    marks.append(time.monotonic())
    data = Mixture.by_weight([dataset])
    plan = data.plan(start=start)
    next(iter(plan.visits()))
    next(iter(plan.places()))
    marks.append(time.monotonic())
    with training_loader(
        data,
        topology,
        global_batch=batch_size,
        start=start,
        stop=None,
        images=TrainImages(224),
        text=None,
        options=make_options(None, None, topology),
    ) as loader:
        next(iter(loader))
        marks.append(time.monotonic())
        return marks, time.process_time() - before


if __name__ == "__main__":
    main()
