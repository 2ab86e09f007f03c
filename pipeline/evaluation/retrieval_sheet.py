"""The contact sheet of an evaluation: some of its queries, in both directions, with what they found."""

import torch

from pipeline.evaluation.contact_sheet import Item, Match, Query, contact_sheet
from pipeline.evaluation.evaluator import Section
from pipeline.evaluation.ranks import retrieval_ranks, top_matches
from shards import Dataset, Sample

MATCHES = 5


def example_queries(
    dataset: Dataset, image: torch.Tensor, text: torch.Tensor, queries: int = 8
) -> list[Section]:
    """`queries` samples, spread evenly over the data set; the same ones every time."""
    chosen = torch.linspace(0, len(dataset) - 1, min(queries, len(dataset))).round().long()
    directions = {
        "Image → text: a figure, and the captions that fit it best": (
            image,
            text,
            _image,
            _caption,
        ),
        "Text → image: a caption, and the figures that fit it best": (
            text,
            image,
            _caption,
            _image,
        ),
    }
    sections = []
    for name, (asking, answering, ask, answer) in directions.items():
        scores, found = top_matches(asking[chosen], answering, MATCHES)
        ranks = retrieval_ranks(asking[chosen], answering, chosen)
        found_by = [
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
        sections.append(Section(name, contact_sheet(found_by)))
    return sections


def _image(sample: Sample) -> Item:
    return Item(image=sample.image)


def _caption(sample: Sample) -> Item:
    return Item(caption=sample.caption)
