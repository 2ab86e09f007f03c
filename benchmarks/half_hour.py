"""Half an hour of training `small` on real figures: does memory stay flat, does the loss fall, is it learnt?

    python benchmarks/half_hour.py --csv pmc_sample/train.csv --scratch /tmp/half_hour
    python benchmarks/half_hour.py --csv pmc_sample/train.csv --scratch /tmp/half_hour --minutes 10

Trains in a process of its own at a constant learning rate, asks it to end (SIGTERM) when the time is over,
and evaluates retrieval among the training figures. Every ten seconds the memory of that process is read: the
resident set without pages of files (RssAnon), which is what a leak grows. Prints what it found, and fails
where memory grew, the loss did not fall, or R@10 is not far above chance.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
SAVED = 75  # the exit code of a run that was asked to end
FLAT = 1.05  # the last third of the time over the middle one
FAR_ABOVE_CHANCE = 5.0


def main() -> None:
    """Train, watch, evaluate, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", required=True, help="table of figures, its images beside it")
    parser.add_argument("--scratch", type=Path, required=True, help="new folder for shards and the run")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to train")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True)
    shards = arguments.scratch / "shards"
    command("shard", "--csv", arguments.csv, "--out", shards)
    memory = train(shards, arguments)
    log = arguments.scratch / "runs" / "half_hour" / "metrics.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [entry for entry in entries if entry["kind"] == "train"]
    figures = evaluate(shards, arguments.scratch)
    report(arguments.minutes, steps[-1], [step["loss"] for step in steps], memory, figures)


def command(name: str, *flags: object) -> None:
    subprocess.run([sys.executable, "-m", f"pipeline.{name}", *map(str, flags)], cwd=PROJECT, check=True)


def train(shards: Path, arguments: argparse.Namespace) -> list[float]:
    """Train until the time is over; MB of the process's own memory, every ten seconds."""
    flags = ["--train-data", shards, "--model", "small", "--mlm", "--batch-size", arguments.batch_size]
    flags += ["--samples", "1B", "--steps", 1_000_000, "--scheduler", "const", "--lr", 5e-4, "--warmup", 50]
    flags += [
        "--save-every",
        100,
        "--log-every",
        1,
        "--logs",
        arguments.scratch / "runs",
        "--name",
        "half_hour",
    ]
    process = subprocess.Popen([sys.executable, "-m", "pipeline.train", *map(str, flags)], cwd=PROJECT)
    end, memory = time.monotonic() + arguments.minutes * 60, []
    while time.monotonic() < end:
        time.sleep(10)
        if process.poll() is not None:
            sys.exit(f"training ended by itself with exit code {process.returncode}")
        memory.append(own_memory(process.pid))
    process.send_signal(signal.SIGTERM)
    if process.wait(timeout=300) != SAVED:
        sys.exit(f"training ended with exit code {process.returncode}, not {SAVED}")
    return memory


def own_memory(pid: int) -> float:
    """MB of a process's memory that is no file's."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1000


def evaluate(shards: Path, scratch: Path) -> dict[str, Any]:
    checkpoint = scratch / "runs" / "half_hour" / "checkpoints" / "latest"
    out = scratch / "evaluated"
    command("evaluate", "--data", shards, "--checkpoint", checkpoint, "--out", out)
    return json.loads((out / "metrics.json").read_text())


def report(
    minutes: float,
    last: dict[str, float],
    losses: list[float],
    memory: list[float],
    figures: dict[str, Any],
) -> None:
    third = len(memory) // 3
    middle, end = median(memory[third : 2 * third]), median(memory[2 * third :])
    tenth = max(1, len(losses) // 10)
    names = [f"{direction}_recall_at_10" for direction in ("image_to_text", "text_to_image")]
    recalls = {name: figures["metrics"][name] for name in names}
    chance = figures["retrieval"]["chance"]
    print(f"{minutes:g} minutes, {last['step']:,} steps, {last['samples_seen']:,} samples seen")
    print(f"memory: median {middle:,.0f} MB in the middle third, {end:,.0f} MB in the last")
    print(f"loss: {mean(losses[:tenth]):.2f} in the first tenth, {mean(losses[-tenth:]):.2f} in the last")
    for name, value in recalls.items():
        print(f"{name}: {value:.1%} (chance {chance[name]:.1%})")
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f} over the last quarter of an hour")
    failures = []
    if end > FLAT * middle:
        failures.append("memory grew")
    if mean(losses[-tenth:]) > 0.7 * mean(losses[:tenth]):
        failures.append("the loss did not fall")
    if any(value < FAR_ABOVE_CHANCE * chance[name] for name, value in recalls.items()):
        failures.append("R@10 is not far above chance")
    if failures:
        sys.exit("; ".join(failures))


if __name__ == "__main__":
    main()
