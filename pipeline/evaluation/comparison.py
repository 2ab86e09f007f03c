"""Evaluations of several models on the same samples, side by side, with paired differences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.hits import Hits
from pipeline.evaluation.output import METRICS
from pipeline.evaluation.retrieval_figures import FIGURES, RankedQueries, interval
from pipeline.evaluation.retrieval_result import DIRECTIONS
from shards import DataError, UsageError

_CLASSIFICATIONS = ("zeroshot", "probe", "knn")
_PAIRED = ("retrieval", *_CLASSIFICATIONS)  # the tasks that keep a row for each sample


@dataclass(frozen=True)
class SampleRows:
    """What an evaluation kept of each sample for one task, in the order of the samples' ids."""

    arrays: Mapping[str, np.ndarray]

    @cached_property
    def order(self) -> np.ndarray:
        """The samples in the order of their ids: int64 [N]."""
        return np.argsort(self.arrays["ids"], kind="stable")

    def of_samples(self, name: str) -> np.ndarray:
        """An array [N] in the order of the samples' ids."""
        return self.arrays[name][self.order]

    def queries(self, direction: str) -> RankedQueries:
        """Of retrieval: the ranks of a direction, with what is resampled together."""
        group, counts = self.of_samples("group"), self.of_samples("captions")
        if direction == "group_text_to_image" and counts.max() > 1:
            own = self.arrays["captions"]
            first = (np.cumsum(own) - own)[self.order]
            places = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
            return RankedQueries(self.arrays[direction][places], np.repeat(group, counts))
        grouped = direction.startswith("group_") and (counts.max() > 1 or len(np.unique(group)) < len(group))
        unit = group if grouped else np.arange(len(group))
        return RankedQueries(self.of_samples(direction), unit)

    def hits(self) -> Hits:
        """Of a classification: which samples are right."""
        _, labels = np.unique(self.of_samples("label"), return_inverse=True)
        top_5 = self.of_samples("top_5") if "top_5" in self.arrays else None
        return Hits(labels, self.of_samples("top_1"), top_5)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as its folder holds it: metrics.json, and the rows of its tasks."""

    source: str
    content: Mapping[str, Any]
    tasks: Mapping[str, SampleRows]

    @staticmethod
    def read(source: str) -> "Evaluation":
        """From metrics.json, or the folder that it is in; UsageError where there is none, or where no task
        has kept rows beside it.
        """
        path = Path(source)
        path = path / METRICS if path.is_dir() else path
        try:
            content = json.loads(path.read_bytes())
            tasks = {}
            for task in _PAIRED:
                if (rows := path.with_name(f"{task}.npz")).exists():
                    with np.load(rows, allow_pickle=False) as arrays:
                        tasks[task] = SampleRows(dict(arrays))
        except FileNotFoundError as error:
            raise UsageError(
                f"{source}: no evaluation here ({error.filename} is missing); give the metrics.json of "
                "'python -m pipeline.evaluate', with the .npz files beside it"
            ) from None
        except (ValueError, OSError, KeyError) as error:
            raise DataError(f"{source}: not an evaluation, or a damaged one ({error})") from error
        if not tasks:
            raise UsageError(
                f"{source}: nothing to compare sample by sample: it is of none of {', '.join(_PAIRED)}"
            )
        return Evaluation(source, content, tasks)

    @property
    def metrics(self) -> dict[str, float]:
        """Every figure by its name."""
        return dict(self.content["metrics"])


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
    """Raise UsageError unless each has a task of the first one's, on the same samples, with the same right
    answers.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        tasks = _in_both(first, other)
        if not tasks:
            raise UsageError(
                f"{other.source} is of {', '.join(other.tasks)}, {first.source} of {', '.join(first.tasks)}: "
                "evaluate both with the same --task"
            )
        for task in tasks:
            _check_alike(task, first, other)


def _check_alike(task: str, first: Evaluation, other: Evaluation) -> None:
    one, two = first.tasks[task], other.tasks[task]
    own, theirs = one.of_samples("ids"), two.of_samples("ids")
    if not np.array_equal(own, theirs):
        alone = np.setdiff1d(theirs, own), np.setdiff1d(own, theirs)
        example = next((ids[0] for ids in alone if len(ids)), theirs[0])
        raise UsageError(
            f"{other.source} is of other samples than {first.source} ({len(theirs):,} and {len(own):,}; "
            f"{example!r} is not in both): evaluate both on the same ones, with the --ids ids.txt of one"
        )
    if task in _CLASSIFICATIONS:
        if not np.array_equal(one.of_samples("label"), two.of_samples("label")):
            raise UsageError(
                f"{other.source} and {first.source} have the same samples with other labels ({task}): give "
                "both the same --label-key or --labels"
            )
        if ("top_5" in one.arrays) != ("top_5" in two.arrays):
            raise UsageError(
                f"{other.source} and {first.source} tell other numbers of classes apart ({task}): give both "
                "the same --classes"
            )
        return
    for name, what in (("captions", "captions"), ("group", "groups")):
        if not np.array_equal(one.of_samples(name), two.of_samples(name)):
            keys = (evaluation.content["retrieval"]["group_key"] for evaluation in (first, other))
            raise UsageError(
                f"{other.source} and {first.source} have the same samples with other {what} (--group-key "
                f"{' and '.join(str(key) for key in keys)}): evaluate both alike, on the same data"
            )


def differences(first: Evaluation, second: Evaluation, seed: int) -> list[Difference]:
    """Every figure that both have; those that follow from single samples with intervals from resampling the
    same samples of both.
    """
    found = []
    for task in _in_both(first, second):
        one, other = first.tasks[task], second.tasks[task]
        if task == "retrieval":
            for direction in DIRECTIONS:
                names = [f"{direction}_{name}" for name in FIGURES]
                queries = one.queries(direction), other.queries(direction)
                figures = [of_one.figures() for of_one in queries]
                found += _paired(names, *figures, *(of_one.resampled(seed) for of_one in queries))
        else:
            hits = one.hits(), other.hits()
            names = [f"{task}_{name}" for name in hits[0].names]
            shares = [of_one.shares() for of_one in hits]
            found += _paired(names, *shares, *(of_one.resampled(seed) for of_one in hits))
    told = {row.name for row in found}
    others = [name for name in first.metrics if name in second.metrics and name not in told]
    return found + [Difference(name, first.metrics[name], second.metrics[name], None) for name in others]


def _in_both(first: Evaluation, second: Evaluation) -> list[str]:
    return [task for task in first.tasks if task in second.tasks]


def _paired(
    names: Sequence[str], first: np.ndarray, second: np.ndarray, drawn: np.ndarray, drawn_too: np.ndarray
) -> list[Difference]:
    """Figures [n] of two evaluations, and of the same resamples of both [resamples, n]."""
    low, high = interval(drawn_too - drawn)
    return [
        Difference(name, float(a), float(b), (float(start), float(stop)))
        for name, a, b, start, stop in zip(names, first, second, low, high, strict=True)
    ]
