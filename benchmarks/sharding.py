"""Samples/s of packing real figures into shards, against peers and the bare limits, interleaved in one run.

    python benchmarks/sharding.py --csv train.csv --images images/ --scratch /tmp/sharding
    python benchmarks/sharding.py --csv train.csv --images images/ --scratch /tmp/sharding --rounds 5

The figures are copied under other names until there are at least 5,000, each with a caption of its own.
Everyone gets the same files and writes image, caption and a small JSON of every sample to the same disk. What
one wrote is deleted before the next starts, and the disk is left to settle in between. Two kinds of work:

- every image decoded once; limit: that alone, in a process for each core, nothing written
- bytes copied unchecked; limits: files read, as many bytes as a tar has written, and flushed to disk; and
  their sha256 computed as well, as a manifest needs it

Each peer lives in an environment of its own below the scratch folder (kept for the next run). Everyone is
measured at the best number of processes, found on a fifth of the samples in a round that does not count. Of
everyone's time, that of a job of 100 samples just before, the start-up, is taken off; of ours that is the
whole command, report included. Ours computes checksums and flushes every shard to disk, which no peer does.
`ShardWriter, one loop` is the loop as its documentation shows it, in one process.
"""

import argparse
import csv
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL

PEERS = Path(__file__).parent / "sharding_peers"
OURS = "pipeline.shard"
SAMPLES_PER_SHARD = 250  # shards small enough that the last ones do not leave a core without work
FEW = 100  # samples of a job that takes no longer than starting, reporting and ending do
PILLOW = f"pillow=={PIL.__version__}"


@dataclass(frozen=True)
class Contender:
    """One thing measured: a peer's script in its environment, the limit, or this project's command."""

    name: str
    verify: str
    script: str | None = None  # of this project's own interpreter where there are no packages
    packages: tuple[str, ...] = ()
    processes: tuple[int, ...] = ()  # to choose from
    flags: tuple[str, ...] = ()


def contenders(cores: int) -> list[Contender]:
    """Everything that is measured, in the order of a round."""
    several = (cores, 2 * cores)
    shardwriter = ("webdataset_shardwriter.py", ("webdataset==1.0.2", PILLOW))
    peers = {
        "webdataset ShardWriter": shardwriter,
        "img2dataset": ("img2dataset_local.py", ("img2dataset==1.47.0",)),
        "litdata optimize": ("litdata_optimize.py", ("litdata==0.2.76", PILLOW)),
        "MosaicML MDSWriter": ("mds_writer.py", ("mosaicml-streaming==0.13.0", PILLOW)),
    }
    chosen = []
    limits = {
        "full": [Contender("limit", "full", "decode_limit.py", (), (cores,))],
        "none": [
            Contender("limit, copied and hashed", "none", "copy_limit.py", (), several, ("--sha256",)),
            Contender("limit, copied", "none", "copy_limit.py", (), several),
        ],
    }
    for verify in ("full", "none"):
        chosen += [Contender(OURS, verify, processes=several), *limits[verify]]
        chosen.append(Contender("ShardWriter, one loop", verify, *shardwriter, (1,)))
        chosen += [Contender(name, verify, *peer, several) for name, peer in peers.items()]
    return chosen


@dataclass(frozen=True)
class Figures:
    """The samples to pack: a JSONL table and a folder of images."""

    table: Path
    images: Path
    samples: int
    bytes: int


def repeat_figures(tables: list[str], images: Path, samples: int, folder: Path) -> Figures:
    """Copy the figures of the tables under new names until there are enough, and write a table of them."""
    figures = [
        (images / row["image"], row["caption"])
        for table in tables
        for row in csv.DictReader(Path(table).read_text(encoding="utf-8").splitlines(keepends=True))
    ]
    copies = folder / "images"
    copies.mkdir(parents=True, exist_ok=True)
    repeated, total = folder / f"{samples}.jsonl", 0
    with open(repeated, "w", encoding="utf-8") as table:
        for number, (path, caption) in enumerate(itertools.islice(itertools.cycle(figures), samples)):
            copy = copies / f"{number // len(figures):03d}_{path.name}"
            if not copy.exists():
                shutil.copyfile(path, copy)
            total += copy.stat().st_size
            table.write(json.dumps({"image": copy.name, "caption": f"{caption} ({number})"}) + "\n")
    return Figures(repeated, copies, samples, total)


def interpreter(contender: Contender, scratch: Path) -> str:
    """The Python of a contender; its environment is made where it is not there yet."""
    if not contender.packages:
        return sys.executable
    environment = scratch / "environments" / "+".join(contender.packages)
    python = environment / "bin/python"
    if not (environment / "complete").exists():
        print(f"installing {' '.join(contender.packages)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *contender.packages], check=True)
        (environment / "complete").touch()
    return str(python)


def measure(contender: Contender, processes: int, figures: Figures, scratch: Path) -> float:
    """Seconds that the contender takes for all figures."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    # so that a few samples, too, are work for every process, and each starts
    samples_per_shard = min(SAMPLES_PER_SHARD, max(1, figures.samples // (2 * processes)))
    arguments = [f"--samples-per-shard={samples_per_shard}", f"--images={figures.images}", f"--out={out}"]
    python = interpreter(contender, scratch)
    if contender.script:
        arguments += [f"--table={figures.table}", f"--processes={processes}", f"--verify={contender.verify}"]
        command = [python, str(PEERS / contender.script), *contender.flags, *arguments]
    else:
        arguments += [f"--csv={figures.table}", f"--verify={contender.verify}", f"--workers={processes}"]
        command = [python, "-m", "pipeline.shard", *arguments]
    begin = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if written < 0.9 * figures.bytes and contender.script != "decode_limit.py":
        raise SystemExit(f"{contender.name} wrote {written:,} bytes of {figures.bytes:,}:\n{done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])["seconds"] if contender.script else seconds


@dataclass(frozen=True)
class Times:
    """Seconds of one measurement: the work, and the start-up that was taken off it."""

    work: float
    start_up: float


def measure_work(
    contender: Contender, processes: int, figures: Figures, few: Figures, scratch: Path
) -> Times:
    """The contender's time without that of a job of a few figures."""
    start_up = measure(contender, processes, few, scratch)
    return Times(measure(contender, processes, figures, scratch) - start_up, start_up)


def best_processes(contender: Contender, part: Figures, few: Figures, scratch: Path) -> int:
    """The number of processes with which a peer is fastest on a part of the figures."""

    def seconds(processes: int) -> float:
        return measure_work(contender, processes, part, few, scratch).work

    return min(contender.processes, key=seconds)


def report(
    figures: Figures, processes: dict[Contender, int], rounds: list[dict[Contender, Times]]
) -> Iterator[str]:
    """The lines of a Markdown table for each kind of work."""
    for verify, title in (("full", "every image decoded once"), ("none", "bytes copied unchecked")):
        there = [contender for contender in processes if contender.verify == verify]
        ours = next(contender for contender in there if contender.name == OURS)
        yield f"\n`--verify {verify}`: {title}\n"
        yield "| | processes | samples/s | MB/s | ours / this | start-up taken off |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for contender in there:
            seconds = statistics.median(times[contender].work for times in rounds)
            ratio = statistics.median(times[contender].work / times[ours].work for times in rounds)
            start_up = statistics.median(times[contender].start_up for times in rounds)
            yield (
                f"| {contender.name} | {processes[contender]} | {figures.samples / seconds:,.0f} "
                f"| {figures.bytes / seconds / 1e6:,.0f} | {ratio:.2f} | {start_up:.1f} s |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", required=True, nargs="+", help="tables with columns image and caption")
    parser.add_argument("--images", required=True, type=Path, help="folder of the images")
    parser.add_argument("--scratch", required=True, type=Path, help="folder for peers, figures, output")
    parser.add_argument("--samples", type=int, default=5540, help="samples to pack in each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are reported")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    scratch = args.scratch.absolute()
    figures, part, few = (
        repeat_figures(args.csv, args.images, samples, scratch / "figures")
        for samples in (args.samples, args.samples // 5, FEW)
    )
    processes = {contender: best_processes(contender, part, few, scratch) for contender in contenders(cores)}
    rounds = [
        {c: measure_work(c, count, figures, few, scratch) for c, count in processes.items()}
        for _ in range(args.rounds)
    ]
    shutil.rmtree(scratch / "out", ignore_errors=True)
    print(
        f"{figures.samples:,} samples, {figures.bytes / 1e6:,.0f} MB, {cores} cores, "
        f"median of {args.rounds} interleaved rounds"
    )
    for line in report(figures, processes, rounds):
        print(line)


if __name__ == "__main__":
    main()
