"""The contact sheet of an evaluation: some of its queries, in both directions, with what they found."""

from pathlib import Path

import torch

from pipeline.contact_sheet import Item, Match, Query, contact_sheet
from pipeline.features import Features
from pipeline.retrieval import RetrievalMetrics, retrieval_ranks, top_matches
from shards import Dataset, Sample
from shards.storage import write_atomically

MATCHES = 5


def write_retrieval_sheet(
    path: Path, dataset: Dataset, features: Features, metrics: RetrievalMetrics, queries: int = 8
) -> None:
    """Write the page for `queries` samples, spread evenly over the data set; the same ones every time."""
    chosen = torch.linspace(0, len(dataset) - 1, min(queries, len(dataset))).round().long()
    directions = {
        "Image → text: a figure, and the captions that fit it best": (
            features.image,
            features.text,
            _image,
            _caption,
        ),
        "Text → image: a caption, and the figures that fit it best": (
            features.text,
            features.image,
            _caption,
            _image,
        ),
    }
    sections = {}
    for name, (asking, answering, ask, answer) in directions.items():
        scores, found = top_matches(asking[chosen], answering, MATCHES)
        ranks = retrieval_ranks(asking[chosen], answering, chosen)
        sections[name] = [
            Query(
                ask(dataset.read_sample(number)),
                [
                    Match(answer(dataset.read_sample(index)), score, index == number)
                    for index, score in zip(found[row].tolist(), scores[row].tolist(), strict=True)
                ],
                float(ranks[row]),
            )
            for row, number in enumerate(chosen.tolist())
        ]
    page = contact_sheet(f"Retrieval on {dataset.name}: {len(dataset):,} pairs", metrics.table(), sections)
    write_atomically(path, page.encode())


def _image(sample: Sample) -> Item:
    return Item(image=sample.image)


def _caption(sample: Sample) -> Item:
    return Item(caption=sample.caption)
