"""Samples/s of the loader against its peers and its limit, on real figures, interleaved in one run.

    python benchmarks/loader.py --csv train.csv --images images/ --scratch DIR
    python benchmarks/loader.py --csv train.csv --images images/ --scratch DIR --setups local-raw --rounds 5
    python benchmarks/loader.py --csv train.csv --images images/ --scratch DIR --only loader limit

Everyone makes batches of 64 images at 224 pixels and their captions as strings, without a tokeniser. The
crop is the published one: RandomResizedCrop, bicubic with antialiasing, scale 0.9 to 1. Peers hand on
normalised float32 tensors, as they do in use; the loader hands on uint8, which is normalised on the device
("float32": normalised by the consumer instead). The consumer takes batches and does nothing with them.
The limit is the loader's decode function alone, on threads, over images in memory.

The figures are repeated under other keys to at least 5,000 samples, as they are (raw) and with a shorter side
of at most 512 pixels (512: `pipeline.shard --resize 512`); everybody's own format is made of the same bytes.
They are read from local disk, warm, or from an S3 server (moto) that shares the machine's cores. MosaicML and
litdata keep what they have fetched, and read their local copies from the second pass over the data on.

Each peer lives in an environment of its own below the scratch folder and runs at its best settings, which a
sweep finds once and keeps in the scratch folder: the number of workers, then the batches each makes ahead.
A measurement is a process of its own; its rate is that of the time from 2 seconds after the first batch on.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader_setups import BUCKET, environment, make_samples, s3_server, upload

PEERS = Path(__file__).parent / "loader_peers"
LOADER = "loader"
SETUPS = ("local-raw", "local-512", "s3-raw", "s3-512")


@dataclass(frozen=True)
class Contender:
    """One thing measured: a script in its environment, over data in its format."""

    name: str
    script: str
    packages: tuple[str, ...] = ()  # none: runs in this project's own environment
    data: str = "shards"  # folder of its format; another than shards and images is written by the script
    arguments: tuple[str, ...] = ()
    workers: tuple[int, ...] = (0, 1, 2, 3, 4)
    prefetches: tuple[int, ...] = (
        2,
        4,
        8,
    )  # batches each worker makes ahead; the first while workers are swept
    remote: bool = True  # whether it can read from S3
    settings_of: str = ""  # another contender, whose settings it takes without a sweep of its own


THREADS = (1, 2, 3, 4)
CONTENDERS = (
    Contender(LOADER, "ours.py", arguments=("fast",), workers=THREADS, prefetches=(2,)),
    Contender("limit", "decode_limit.py", workers=THREADS, prefetches=(2,), remote=False),
    Contender("loader, float32", "ours.py", arguments=("float32",), settings_of=LOADER),
    Contender("loader, --decode exact", "ours.py", arguments=("exact",), settings_of=LOADER),
    Contender(
        "open_clip get_wds_dataset",
        "open_clip_wds.py",
        ("open_clip_torch==3.3.0", "webdataset==0.2.86"),
        prefetches=(2,),  # it has no flag for it
    ),
    Contender("webdataset", "plain_webdataset.py", ("webdataset==1.0.2",)),
    Contender("MosaicML StreamingDataset", "mosaic_streaming.py", ("mosaicml-streaming==0.13.0",), "mds"),
    Contender(
        "litdata StreamingDataset", "litdata_streaming.py", ("litdata==0.2.76", "obstore==0.12.1"), "litdata"
    ),
    Contender(
        "Megatron-Energon",
        "energon_webdataset.py",
        ("megatron-energon==7.4.1", "multi-storage-client==1.3.1"),
        "energon",
    ),
    Contender("published CSV Dataset", "published_csv.py", data="images", remote=False),
)


class Failed(Exception):
    """A contender's process ended without an answer; the message is the end of its output."""


@dataclass(frozen=True)
class Bench:
    """Where a setup's data is, and how contenders are run on it."""

    setup: str
    scratch: Path

    @property
    def source(self) -> Path:
        """The folder of the samples as files and shards."""
        return self.scratch / self.setup.partition("-")[2]

    @property
    def on_s3(self) -> bool:
        return self.setup.startswith("s3")

    def takes(self, contender: Contender) -> bool:
        """Whether a contender can be measured here; the limit reads nothing and is always."""
        return contender.remote or not self.on_s3 or contender.name == "limit"

    def prepare(self, contenders: list[Contender]) -> None:
        """Write the contenders' own formats, and copy them to S3 where they are read from there."""
        formats = {contender.data: contender for contender in contenders}
        for name, contender in formats.items():
            if not (self.source / name).exists():
                unfinished = self.source / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                self.run(contender, "prepare", data=str(unfinished))
                unfinished.rename(self.source / name)
            if self.on_s3 and contender.remote:
                upload(self.source / name, self.data(contender))

    def data(self, contender: Contender) -> str:
        """Where a contender reads."""
        if self.on_s3 and contender.remote:
            return f"{BUCKET}/{self.source.name}/{contender.data}"
        return str(self.source / contender.data)

    def measure(self, contender: Contender, settings: dict[str, int], seconds: float) -> dict[str, float]:
        """Rate, processor time per sample and start-up of one run."""
        cache = self.scratch / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        job = {"data": self.data(contender), "cache": str(cache), "seconds": seconds, **settings}
        answer = self.run(contender, "measure", **job)
        print(f"{self.setup}: {contender.name} {settings}: {answer['rate']:,.0f}/s", file=sys.stderr)
        return answer

    def run(self, contender: Contender, action: str, **job: Any) -> dict[str, float]:
        """Run a contender's script; its answer. Nothing that it started is left behind."""
        python = environment(contender.packages, self.scratch)
        described = json.dumps({"source": str(self.source), **job})
        command = [python, str(PEERS / contender.script), action, described, *contender.arguments]
        log = self.scratch / "output.log"
        with open(log, "w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                process.wait(timeout=300 + job.get("seconds", 0))
            except subprocess.TimeoutExpired:
                pass
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        for line in reversed(lines):  # some print a farewell
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
        raise Failed(f"{contender.name}, {action} {job}:\n" + "\n".join(lines[-15:]))


def sweep(bench: Bench, contender: Contender, seconds: float) -> dict[str, Any]:
    """The fastest settings of a contender, with all that was tried."""
    tried: dict[tuple[int, int], float] = {}

    def attempt(workers: int, prefetch: int) -> None:
        try:
            settings = {"workers": workers, "prefetch": prefetch}
            tried[workers, prefetch] = bench.measure(contender, settings, seconds)["rate"]
        except Failed as failed:
            print(failed, file=sys.stderr)

    first, *others = contender.prefetches
    for workers in contender.workers:
        attempt(workers, first)
    if not tried:
        return {"settings": None, "tried": []}
    best_workers = max(tried, key=tried.__getitem__)[0]
    for prefetch in others if best_workers else ():
        attempt(best_workers, prefetch)
    workers, prefetch = max(tried, key=tried.__getitem__)
    return {
        "settings": {"workers": workers, "prefetch": prefetch},
        "tried": [[*settings, round(rate, 1)] for settings, rate in tried.items()],
    }


def best_settings(
    bench: Bench, contenders: list[Contender], seconds: float, *, again: bool
) -> dict[Contender, dict[str, int] | None]:
    """Every contender's settings: those of an earlier sweep, else found now and kept."""
    kept = bench.scratch / "sweep.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    mine = known.setdefault(bench.setup, {})
    swept = {contender.settings_of or contender.name for contender in contenders}
    for contender in CONTENDERS:
        if contender.name in swept and (again or contender.name not in mine):
            mine[contender.name] = sweep(bench, contender, seconds)
            kept.write_text(json.dumps(known, indent=1))
    return {contender: mine[contender.settings_of or contender.name]["settings"] for contender in contenders}


def report(
    bench: Bench,
    settings: dict[Contender, dict[str, int] | None],
    rounds: list[dict[Contender, dict[str, float]]],
) -> Iterator[str]:
    """The lines of a Markdown table: medians over the rounds, and the rates' range."""

    def middle(values: list[float]) -> float:
        return statistics.median(values) if values else float("nan")

    yield f"\n{bench.setup}\n"
    yield "| | workers, ahead | samples/s | range | loader / this | CPU ms a sample | first batch, s |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for contender, chosen in settings.items():
        runs = [results[contender] for results in rounds if contender in results]
        if not runs or chosen is None:
            yield f"| {contender.name} | | failed | | | | |"
            continue
        rates = [run["rate"] for run in runs]
        ratios = [
            ours["rate"] / results[contender]["rate"]
            for results in rounds
            if contender in results
            for other, ours in results.items()
            if other.name == LOADER
        ]
        ahead = f", {chosen['prefetch']}" if len(contender.prefetches) > 1 and chosen["workers"] else ""
        cpu, start_up = (middle([run[what] for run in runs]) for what in ("cpu_ms", "start_up"))
        yield (
            f"| {contender.name} | {chosen['workers']}{ahead} | {middle(rates):,.0f} "
            f"| {min(rates):,.0f} – {max(rates):,.0f} | {middle(ratios):.2f} | {cpu:.2f} | {start_up:.1f} |"
        )


def compare(bench: Bench, contenders: list[Contender], args: argparse.Namespace) -> list[str]:
    """Sweep where that is still to be done, measure in rounds; the table."""
    bench.prepare(contenders)
    settings = best_settings(bench, contenders, args.sweep_seconds, again=args.sweep_again)
    rounds: list[dict[Contender, dict[str, float]]] = []
    for _ in range(args.rounds):
        results = {}
        for contender, chosen in settings.items():
            if chosen is not None:
                try:
                    results[contender] = bench.measure(contender, chosen, args.seconds)
                except Failed as failed:
                    print(failed, file=sys.stderr)
        rounds.append(results)
    return list(report(bench, settings, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", required=True, nargs="+", help="tables with columns image and caption")
    parser.add_argument("--images", required=True, type=Path, help="folder of the images")
    parser.add_argument(
        "--scratch", required=True, type=Path, help="folder for environments, data and sweeps"
    )
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=SETUPS, help="what is read from where")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only those whose name contains one of these"
    )
    parser.add_argument("--samples", type=int, default=5000, help="least number of samples")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are reported")
    parser.add_argument("--seconds", type=float, default=20, help="of one measurement, start-up not counted")
    parser.add_argument("--sweep-seconds", type=float, default=5, help="of one measurement of the sweep")
    parser.add_argument("--sweep-again", action="store_true", help="forget the settings found earlier")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what was started, too
    scratch = args.scratch.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {args.rounds} rounds of {args.seconds:g} s each", flush=True)
    for setup in args.setups:
        bench = Bench(setup, scratch)
        resize = None if bench.source.name == "raw" else int(bench.source.name)
        make_samples(args.csv, args.images.absolute(), args.samples, resize, bench.source)
        contenders = [
            contender
            for contender in CONTENDERS
            if bench.takes(contender) and (not args.only or any(name in contender.name for name in args.only))
        ]
        with s3_server(scratch) if bench.on_s3 else nullcontext():
            print("\n".join(compare(bench, contenders, args)), flush=True)


if __name__ == "__main__":
    main()
