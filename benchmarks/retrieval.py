"""Retrieval from ready embeddings: this project's ranks by counting against open_clip's and CLIP_benchmark's.

    python benchmarks/retrieval.py --scratch /tmp/retrieval                     # 2,000 and 20,000 pairs
    python benchmarks/retrieval.py --scratch /tmp/retrieval --pairs 200000 --rounds 1

Everyone gets the same made-up features [N, 768] (float32, L2-normalised) in a fresh process, in turn, and
says how long its own code took, what processor time that was, and by how much it raised the peak of the
process's memory:

- ours            features onto the grid, all ranks strictly and by groups, all figures, 1,000 resamples for
                  their intervals
- ours, ranks     the same without intervals: figures alone, as everybody else's
- open_clip       `open_clip_train.train.get_clip_metrics`; the published PMC-CLIP code has the same lines
- CLIP_benchmark  `clip_benchmark.metrics.zeroshot_retrieval.evaluate` for R@1, R@5 and R@10 with a model that
                  hands the features on, in batches of 64

Whoever would need more memory than `--memory` for a matrix of all scores is not started, and reported so.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

DIMENSIONS = 768
CLIP_BENCHMARK = "clip-benchmark==1.6.2"
# Bytes for each of N × N scores that a contender holds at its peak: seen at N = 20,000, and told by its code.
BYTES_PER_SCORE = {"ours": 0, "ours, ranks": 0, "open_clip": 26, "CLIP_benchmark": 6}


def main() -> None:
    """Measure everyone in turn, and print a table."""
    arguments = parse()
    if arguments.contender:
        print(json.dumps(measure(arguments.contender, arguments.pairs[0])))
        return
    peers = arguments.scratch / "peers"
    if not peers.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(peers)]
        subprocess.run([*command, CLIP_BENCHMARK], check=True)
    for pairs in arguments.pairs:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(arguments.rounds):
            for name, results in found.items():
                if BYTES_PER_SCORE[name] * pairs**2 <= arguments.memory * 1e9:
                    results.append(start_fresh(name, pairs, peers))
        report(pairs, found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scratch", type=Path, required=True, help="folder for what is installed")
    parser.add_argument("--pairs", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=16, help="GB that a contender may take")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    return parser.parse_args()


def start_fresh(name: str, pairs: int, peers: Path) -> dict[str, float]:
    """What a contender measures in a process of its own."""
    command = [sys.executable, __file__, "--scratch", ".", "--contender", name, "--pairs", str(pairs)]
    paths = f"{Path(__file__).parents[1]}:{peers}"
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, pairs: int) -> dict[str, float]:
    """Seconds, processor time, gigabytes by which the peak of memory rose, and R@10 image→text: everyone must
    find the same.
    """
    image, text = drawn(pairs)
    work = CONTENDERS[name]()
    work(image[:100], text[:100])  # imports and first calls
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.perf_counter(), time.process_time()
    recall = work(image, text)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "cpu": cpu, "gigabytes": grown * 1024 / 1e9, "recall": recall}


def drawn(pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of pairs that fit one another to some degree: image, text [N, 768]."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(pairs, DIMENSIONS, generator=generator)
    text = image + 8 * torch.randn(pairs, DIMENSIONS, generator=generator)
    return torch.nn.functional.normalize(image, dim=-1), torch.nn.functional.normalize(text, dim=-1)


def ours(seed: int | None) -> Callable[[torch.Tensor, torch.Tensor], float]:
    from pipeline.evaluation.feature_rows import FeatureRows
    from pipeline.evaluation.pairing import Pairing
    from pipeline.evaluation.ranks import count_ranks
    from pipeline.evaluation.retrieval_result import RetrievalResult
    from pipeline.evaluation.tiled_rows import TiledRows
    from pipeline.topology import Topology

    def work(image: torch.Tensor, text: torch.Tensor) -> float:
        numbers, ones = np.arange(len(image), dtype=np.uint64), np.ones(len(image), np.int64)
        pairing = Pairing.make(numbers, numbers, ones)
        tiled = [
            TiledRows(FeatureRows.of(rows), pairing.image_order, Topology(), torch.device("cpu"))
            for rows in (image, text)
        ]
        ranks = count_ranks(*tiled, pairing, Topology())
        ids = [f"{number:09d}" for number in range(len(image))]
        result = RetrievalResult.make(ranks, pairing, ones, ids, seed)
        return result.values["image_to_text_recall_at_10"]

    return work


def open_clip() -> Callable[[torch.Tensor, torch.Tensor], float]:
    from open_clip_train.train import get_clip_metrics

    return lambda image, text: float(get_clip_metrics(image, text, 1.0)["image_to_text_R@10"])


def clip_benchmark() -> Callable[[torch.Tensor, torch.Tensor], float]:
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    class Ready:
        """A model whose features are there already."""

        def encode_image(self, rows: torch.Tensor) -> torch.Tensor:
            return rows

        encode_text = encode_image

    def work(image: torch.Tensor, text: torch.Tensor) -> float:
        batches = [
            (image[start : start + 64], [[number] for number in range(start, min(start + 64, len(image)))])
            for start in range(0, len(image), 64)
        ]
        found = evaluate(Ready(), batches, lambda n: text[n], "cpu", amp=False, recall_k_list=[1, 5, 10])
        return found["text_retrieval_recall@10"]

    return work


def report(pairs: int, found: dict[str, list[dict[str, float]]]) -> None:
    """A table: medians, with ratios of processor time, which other work on the machine hardly changes."""
    print(f"\n{pairs:,} pairs\n{'':16}{'seconds':>10}{'CPU s':>9}{'/ ours':>9}{'peak, GB':>10}{'R@10':>8}")
    own = statistics.median(one["cpu"] for one in found["ours"])
    for name, results in found.items():
        if not results:
            needed = BYTES_PER_SCORE[name] * pairs**2 / 1e9
            print(f"{name:16}not started: needs about {needed:,.0f} GB")
            continue
        middle = {key: statistics.median(one[key] for one in results) for key in results[0]}
        print(
            f"{name:16}{middle['seconds']:>10.2f}{middle['cpu']:>9.2f}{middle['cpu'] / own:>9.2f}"
            f"{middle['gigabytes']:>10.2f}{middle['recall']:>8.1%}",
            flush=True,
        )


CONTENDERS: dict[str, Callable[[], Callable[[torch.Tensor, torch.Tensor], float]]] = {
    "ours": lambda: ours(0),
    "ours, ranks": lambda: ours(None),
    "open_clip": open_clip,
    "CLIP_benchmark": clip_benchmark,
}


if __name__ == "__main__":
    main()
