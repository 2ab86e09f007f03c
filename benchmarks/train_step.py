"""Samples/s and memory of a training step: the published form, ours, and ours with one gain after another.

    python benchmarks/train_step.py --csv train.csv valid.csv
    python benchmarks/train_step.py --csv train.csv --batch-size 32 --only published fused compiled

Everyone steps over the same batches: real captions, 15 % of whose words are masked, and random pixels; random
weights; forward, both losses, backward, AdamW. The published form (benchmarks/published_step.py) tokenises in
`forward`; ours gets token ids, which its loader makes in other threads. Each row of the table is a process of
its own and adds one gain to the row above (benchmarks/our_step.py).

Rounds are interleaved; rates are medians, ratios the medians of each round's. Memory is the peak of the steps
less what the process held before it built the model: weights, gradients, AdamW's moments, activations; on a
GPU, what PyTorch allocated. FLOPs are counted in a step, a multiplication and an addition as two. Before all
that, a tiny model shows that both sides compute the same losses from the same weights.

The vocabulary is the shipped one of 8,000 entries, filled up with [unused] entries to the model's 30,522;
PubMedBERT's own, which is not shipped, cuts captions into fewer pieces.
"""

import argparse
import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from our_step import GAINS, OurStep
from published_step import (
    PublishedForm,
    PublishedStep,
    largest_difference,
    mask_text,
    published_tokenizer,
)
from torch.utils.flop_counter import FlopCounterMode

import pmc_clip
from pmc_clip.text_layout import TextLayout

VOCABULARY = "pmc_captions_8k"
PUBLISHED = "published"
ROWS = {
    "eager": "published form, attention written out",
    PUBLISHED: "published form",
    "ours": "ours without a gain, tokens made ahead",
    **GAINS,
}
"""What is measured, in order: name and what the table calls it. A gain's row has the gains above it, too."""


@dataclass(frozen=True)
class Options:
    """What a measurement is told."""

    csv: list[str]
    model: str
    batch_size: int
    steps: int
    warmup: int
    device: str


# One measurement, in a process of its own


def steps_of(row: str, options: Options) -> Iterator[Callable[[], None]]:
    """Step after step, each over other captions. The model is built when the first is asked for."""
    device = torch.device(options.device)
    config = pmc_clip.load_model_config(options.model)
    size = config.vision_cfg.image_size
    pixels = torch.randint(0, 256, (options.batch_size, 3, size, size), dtype=torch.uint8)
    captions = read_captions(options.csv)
    tokenizer = published_tokenizer(VOCABULARY, config.text_cfg.vocab_size)

    def on_host(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if device.type == "cuda" else tensor

    if row not in ("ours", *GAINS):
        attention = "eager" if row == "eager" else "sdpa"
        published = PublishedStep(PublishedForm(config, tokenizer, attention), device)
        images = on_host(pmc_clip.normalize(pixels))
        for draw, chosen in draw_captions(captions, options.batch_size):
            texts = [mask_text(caption, tokenizer, draw) for caption in chosen]
            yield partial(published, images, *zip(*texts, strict=True))

    gains = frozenset(list(GAINS)[: list(GAINS).index(row) + 1]) if row in GAINS else frozenset()
    mask_padding = "packed" in gains
    text = replace(config.text_cfg, mask_padding=mask_padding, tokenizer=VOCABULARY)
    config = replace(config, text_cfg=text)
    our_tokenizer = pmc_clip.get_tokenizer(config)
    ours = OurStep(config, gains, device)
    if "channels" in gains:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    images = on_host(pixels if "uint8" in gains else pmc_clip.normalize(pixels))
    for draw, chosen in draw_captions(captions, options.batch_size):
        tokens = our_tokenizer(chosen)
        draws = np.random.default_rng(draw.getrandbits(32)).random((*tokens.shape, 3))
        tokens, labels = pmc_clip.mask_tokens(tokens, draws, our_tokenizer)
        layout = TextLayout.of(tokens, labels, mask_padding=mask_padding)
        layout = TextLayout(*(None if part is None else on_host(part) for part in layout))
        yield partial(ours, images, on_host(tokens), layout)


def read_captions(tables: list[str]) -> list[str]:
    """The column caption of CSV tables."""
    captions = []
    for table in tables:
        with open(table, encoding="utf-8", newline="") as file:
            captions += [line["caption"] for line in csv.DictReader(file)]
    return captions


def draw_captions(captions: list[str], batch_size: int) -> Iterator[tuple[random.Random, list[str]]]:
    """Batches without end, the same in every process, each with a generator for its masks."""
    number = 0
    while True:
        draw = random.Random(number)
        yield draw, draw.choices(captions, k=batch_size)
        number += 1


def measure(row: str, options: Options) -> dict[str, float]:
    """One row of the table: samples/s, bytes, and seconds of processor time and FLOPs a sample."""
    torch.manual_seed(0)
    on_gpu = options.device == "cuda"
    if not on_gpu:  # fail, before the system ends somebody's process for lack of memory
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.95 * 1024 * _field("meminfo", "MemAvailable")),) * 2)
    before = 1024 * _field("self/status", "VmRSS")
    steps = steps_of(row, options)
    answer = {}
    if row != "compiled":  # it computes what the row above it does, where it can be counted
        with FlopCounterMode(display=False) as counter:
            next(steps)()
        answer["flops"] = counter.get_total_flops() / options.batch_size
    for _ in range(options.warmup):
        next(steps)()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    made = [next(steps) for _ in range(options.steps)]
    _finish(on_gpu)
    wall, processor = time.perf_counter(), time.process_time()
    for step in made:
        step()
    _finish(on_gpu)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    samples = options.steps * options.batch_size
    memory = torch.cuda.max_memory_allocated() if on_gpu else 1024 * _field("self/status", "VmHWM") - before
    return {**answer, "rate": samples / wall, "memory": memory, "processor": processor / samples}


def _finish(on_gpu: bool) -> None:
    """Wait for the device."""
    if on_gpu:
        torch.cuda.synchronize()


def _field(file: str, name: str) -> int:
    """A number in /proc."""
    lines = Path("/proc", file).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


# All measurements, and the table


def compare(rows: list[str], rounds: int, options: Options) -> list[dict[str, dict[str, float]]]:
    """The measurements of each round, by row; a row that does not fit into memory is left out."""
    results: list[dict[str, dict[str, float]]] = []
    for number in range(rounds):
        results.append({})
        for row in rows:
            command = [sys.executable, __file__, "--measure", json.dumps([row, asdict(options)])]
            process = subprocess.run(command, check=False, capture_output=True, text=True)
            if process.returncode:
                print(f"{row} failed:\n{process.stderr[-2000:]}", file=sys.stderr)
                continue
            results[-1][row] = json.loads(process.stdout.splitlines()[-1])
            told = ", ".join(f"{name} {value:.4g}" for name, value in results[-1][row].items())
            print(f"round {number + 1}, {row}: {told}", file=sys.stderr)
    return results


def report(rows: list[str], results: list[dict[str, dict[str, float]]]) -> Iterator[str]:
    """The lines of a Markdown table."""

    def middle(what: str, row: str, other: str = "") -> float:
        """The median of a row's figures, or of their ratios to another's in the same round."""
        values = [
            result[row][what] / (result[other][what] if other else 1.0)
            for result in results
            if what in result.get(row, ()) and (not other or other in result)
        ]
        return statistics.median(values) if values else float("nan")

    columns = ("samples/s", "/ published", "/ row above", "memory, GB", "/ published")
    yield " | ".join(["| ", *columns, "GFLOP a sample", "CPU ms a sample |"])
    yield "| --- " + "| ---: " * (len(columns) + 2) + "|"
    for row, above in zip(rows, ["", *rows], strict=False):
        if not any(row in result for result in results):
            yield f"| {ROWS[row]} | failed | | | | | | |"
            continue
        step = f"{middle('rate', row, above):.2f}" if above not in ("", "eager") else ""
        work = f"{middle('flops', row) / 1e9:.1f}" if row != "compiled" else ""
        yield (
            f"| {ROWS[row]} | {middle('rate', row):,.4g} | {middle('rate', row, PUBLISHED):.2f} | {step} "
            f"| {middle('memory', row) / 1e9:.2f} | {middle('memory', row, PUBLISHED):.2f} | {work} "
            f"| {1000 * middle('processor', row):,.4g} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", required=True, nargs="+", help="tables with a column caption")
    parser.add_argument("--model", default="RN50_fusion4", help="name of a model config")
    parser.add_argument("--batch-size", type=int, default=128, help="samples of a step, the same for all")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are reported")
    parser.add_argument("--steps", type=int, help="steps that are measured (50; on a CPU 2)")
    parser.add_argument("--warmup", type=int, help="steps before those (10; on a CPU 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows of the table")
    if sys.argv[1:2] == ["--measure"]:
        row, options = json.loads(sys.argv[2])
        print(json.dumps(measure(row, Options(**options))))
        return
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device == "cuda"
    options = Options(
        csv=args.csv,
        model=args.model,
        batch_size=args.batch_size,
        steps=args.steps or (50 if on_gpu else 2),
        warmup=args.warmup or (10 if on_gpu else 2),
        device=device,
    )
    print(f"same losses from the same weights, to {largest_difference(VOCABULARY):.0e}")
    rows = [row for row in ROWS if row in args.only]
    results = compare(rows, args.rounds, options)
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads on a CPU"
    print(f"{options.model}, batches of {options.batch_size}, {where}, {args.rounds} x {options.steps} steps")
    print("\n".join(report(rows, results)))


if __name__ == "__main__":
    main()
