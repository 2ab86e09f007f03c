"""Evaluations of several models on the same samples, side by side, with paired differences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.output import METRICS
from pipeline.evaluation.retrieval_figures import FIGURES, RankedQueries, interval
from pipeline.evaluation.retrieval_result import DIRECTIONS, VALUES
from shards import DataError, UsageError

_QUERIES = "retrieval.npz"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as its folder holds it, its queries in the order of the samples' ids."""

    source: str
    content: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @staticmethod
    def read(source: str) -> "Evaluation":
        """From metrics.json, or the folder that it is in; UsageError where there is none, or where there are
        no ranks beside it.
        """
        path = Path(source)
        path = path / METRICS if path.is_dir() else path
        try:
            content = json.loads(path.read_bytes())
            with np.load(path.with_name(_QUERIES), allow_pickle=False) as arrays:
                return Evaluation(source, content, dict(arrays))
        except FileNotFoundError as error:
            raise UsageError(
                f"{source}: no evaluation of retrieval here ({error.filename} is missing); give the "
                f"metrics.json of 'python -m pipeline.evaluate', with {_QUERIES} beside it"
            ) from None
        except (ValueError, OSError, KeyError) as error:
            raise DataError(f"{source}: not an evaluation, or a damaged one ({error})") from error

    @property
    def metrics(self) -> dict[str, float]:
        """Every figure by its name."""
        return dict(self.content["metrics"])

    @cached_property
    def order(self) -> np.ndarray:
        """The samples in the order of their ids: int64 [N]."""
        return np.argsort(self.arrays["ids"], kind="stable")

    def of_samples(self, name: str) -> np.ndarray:
        """An array [N] in the order of the samples' ids."""
        return self.arrays[name][self.order]

    def queries(self, direction: str) -> RankedQueries:
        """The ranks of a direction, in the order of the samples' ids, with what is resampled together."""
        group, counts = self.of_samples("group"), self.of_samples("captions")
        if direction == "group_text_to_image" and counts.max() > 1:
            own = self.arrays["captions"]
            first = (np.cumsum(own) - own)[self.order]
            places = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
            return RankedQueries(self.arrays[direction][places], np.repeat(group, counts))
        grouped = direction.startswith("group_") and (counts.max() > 1 or len(np.unique(group)) < len(group))
        unit = group if grouped else np.arange(len(group))
        return RankedQueries(self.of_samples(direction), unit)


@dataclass(frozen=True)
class Difference:
    """A figure of two evaluations, and the second less the first; ends: of its 95 % interval, where known."""

    name: str
    first: float
    second: float
    ends: tuple[float, float] | None

    @property
    def difference(self) -> float:
        """The second figure less the first."""
        return self.second - self.first

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves no room for no difference."""
        return self.ends is not None and (self.ends[0] > 0 or self.ends[1] < 0)


def check_comparable(evaluations: Sequence[Evaluation]) -> None:
    """Raise UsageError unless all are of the same samples, captions and groups."""
    first = evaluations[0]
    for other in evaluations[1:]:
        own, theirs = first.of_samples("ids"), other.of_samples("ids")
        if not np.array_equal(own, theirs):
            alone = np.setdiff1d(theirs, own), np.setdiff1d(own, theirs)
            example = next((ids[0] for ids in alone if len(ids)), theirs[0])
            raise UsageError(
                f"{other.source} is of other samples than {first.source} ({len(theirs):,} and {len(own):,}; "
                f"{example!r} is not in both): evaluate both on the same ones, with the --ids ids.txt of one"
            )
        for name, what in (("captions", "captions"), ("group", "groups")):
            if not np.array_equal(first.of_samples(name), other.of_samples(name)):
                keys = (one.content["retrieval"]["group_key"] for one in (first, other))
                raise UsageError(
                    f"{other.source} and {first.source} have the same samples with other {what} (--group-key "
                    f"{' and '.join(str(key) for key in keys)}): evaluate both alike, on the same data"
                )


def differences(first: Evaluation, second: Evaluation, seed: int) -> list[Difference]:
    """Every figure that both have; those of retrieval with intervals from resampling the same queries of
    both.
    """
    found = []
    for direction in DIRECTIONS:
        one, other = first.queries(direction), second.queries(direction)
        low, high = interval(other.resampled(seed) - one.resampled(seed))
        figures = zip(FIGURES, one.figures(), other.figures(), low, high, strict=True)
        found += [
            Difference(f"{direction}_{name}", float(a), float(b), (float(start), float(stop)))
            for name, a, b, start, stop in figures
        ]
    others = [name for name in first.metrics if name in second.metrics and name not in VALUES]
    return found + [Difference(name, first.metrics[name], second.metrics[name], None) for name in others]
