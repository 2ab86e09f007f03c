"""What embedding costs beside the bare forward pass, and how long a search takes.

    python benchmarks/embedding.py --data shards/train --models tiny small
    python benchmarks/embedding.py --rows 1_000_000 --index exact
    python benchmarks/embedding.py --rows 200_000

Throughput: batches that lie in memory through the model, and `pipeline.embed`'s own loop over the data, in
turns; the loader without a model beside them. Search: clustered float16 rows of 768 features, one query at a
time from a data set on disk, already in the page cache. All in processor time with one arithmetic thread, so
that what else runs on the machine counts little.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import pmc_clip
from pipeline.decode import EvalImages
from pipeline.embedding.compute import embed_batch, write_pieces
from pipeline.embedding.manifest import EmbeddedData, EmbeddedModel, EmbeddingsManifest
from pipeline.embedding.pieces import Piece, write_piece
from pipeline.embedding.reader import Embeddings
from pipeline.embedding.span_plan import SpanPlan
from pipeline.job_progress import JobProgress
from pipeline.loader import Loader
from pipeline.searching.exact import exact_search
from pipeline.searching.faiss_index import FaissIndex, build_index
from pipeline.text import TextStage
from shards import Folder, SampleStream, open_dataset

BATCH, WIDTH, CLUSTERS = 64, 768, 5_000


def describe(samples: int, width: int, dtype: str, samples_per_piece: int = 2048) -> EmbeddingsManifest:
    model = EmbeddedModel("none", None, "0" * 16, "0" * 16, width, 64, [0.0] * 3, [1.0] * 3, "exact")
    data = EmbeddedData("none", "shards", "0" * 64, samples)
    return EmbeddingsManifest(model, data, ["image", "text"], "npy", dtype, samples_per_piece)


def throughput(data: str, name: str, rounds: int) -> None:
    dataset = open_dataset(data)
    model = pmc_clip.create_model(name, pretrained_text=False, pretrained_image=False).eval()
    model = model.to(memory_format=torch.channels_last)
    size, device = model.config.vision_cfg.image_size, torch.device("cpu")
    text = TextStage(pmc_clip.get_tokenizer(name))

    def loader() -> Loader:
        plan = SpanPlan(dataset.blocks.samples, [(0, len(dataset))])
        stream = SampleStream(dataset, plan)
        return Loader(stream, batch_size=BATCH, images=EvalImages(size), text=text, workers=2)

    held = [replace(batch, images=batch.images.clone()) for batch in loader()]

    def bare() -> None:
        for batch in held:
            embed_batch(model, batch, ["image", "text"], device)

    def embed() -> None:
        manifest = describe(len(dataset), model.config.embed_dim, "float32")
        pieces = range(manifest.pieces)
        with tempfile.TemporaryDirectory() as out, loader() as batches, JobProgress(len(dataset)) as progress:
            write_pieces(model, batches, pieces, Folder(out), manifest, device, progress)

    def load() -> None:
        for _ in loader():
            pass

    rates = interleaved({"bare": bare, "embed": embed, "loader": load}, len(dataset), rounds)
    in_rounds = list(zip(*(rates[key] for key in ("bare", "loader", "embed")), strict=True))
    ratio = statistics.median(embedded / alone for alone, _, embedded in in_rounds)
    both = statistics.median(embedded * (1 / alone + 1 / loaded) for alone, loaded, embedded in in_rounds)
    shown = " | ".join(f"{statistics.median(rates[key]):,.0f}" for key in ("bare", "loader", "embed"))
    print(f"| {name}, {size} pixels | {shown} | {ratio:.2f} | {both:.2f} |", flush=True)


def interleaved(works: dict[str, Callable[[], None]], samples: int, rounds: int) -> dict[str, list[float]]:
    """Samples a second of each work in each round, after one that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for counts in [False] + [True] * rounds:
        for name, work in works.items():
            begin = time.process_time()
            work()
            if counts:
                rates[name].append(samples / (time.process_time() - begin))
    return rates


def write_rows(folder: Path, rows: int) -> Embeddings:
    """Clustered features: images near the centres of clusters, captions at a distance from their images."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((CLUSTERS, WIDTH), np.float32)
    manifest, target, counts = describe(rows, WIDTH, "float16", 16_384), Folder(folder), []
    for piece in range(manifest.pieces):
        numbers = np.arange(*manifest.span(piece))
        image = centres[random.integers(0, CLUSTERS, len(numbers))]
        image = unit(image + 0.7 * random.standard_normal(image.shape, np.float32))
        text = unit(image + 0.5 / WIDTH**0.5 * random.standard_normal(image.shape, np.float32) + 0.02)
        names = [str(number) for number in numbers]
        features = {"image": image.astype(np.float16), "text": text.astype(np.float16)}
        write_piece(target, piece, Piece(numbers, names, names, features), "npy")
        counts.append(len(numbers))
    return Embeddings(target, replace(manifest, rows=counts))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def latency(rows: int, index: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        embeddings = write_rows(Path(folder), rows)
        features = embeddings.features("image")
        asked = np.linspace(0, rows - 1, 50).astype(np.int64)
        queries = embeddings.features("text").take(asked).astype(np.float32)
        exact, true = timed(lambda query: exact_search(features, query, 10).rows[0], queries)
        print(f"{rows:,} x {WIDTH} float16: exact {exact:,.1f} ms", flush=True)
        if index == "exact":
            return
        begin = time.process_time()
        built = FaissIndex(build_index(embeddings, "image"), features)
        seconds = time.process_time() - begin
        milliseconds, found = timed(lambda query: built.search(query, 10).rows[0], queries)
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, true, strict=True)])
        probes = f"{built.index.nprobe} of {built.index.nlist}"
        print(f"faiss {milliseconds:,.1f} ms, recall {recall:.1%}, lists {probes}, built in {seconds:,.0f} s")


def timed(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray) -> tuple[float, list[list[int]]]:
    """Median milliseconds of a query, and what was found."""
    search(queries[:1])
    seconds, found = [], []
    for query in queries:
        begin = time.process_time()
        found.append(search(query[None]).tolist())
        seconds.append(time.process_time() - begin)
    return 1000 * statistics.median(seconds), found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="shards to embed")
    parser.add_argument("--models", nargs="+", default=["tiny", "small"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--index", choices=["exact", "faiss"], default="faiss")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    if flags.data:
        print(
            "| model | forward pass alone | loader alone | embed | embed / forward | embed / both in turn |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name in flags.models:
            throughput(flags.data, name, flags.rounds)
    for rows in flags.rows:
        latency(rows, flags.index)


if __name__ == "__main__":
    main()
