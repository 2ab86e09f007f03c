"""What an evaluator is: it gets a model and data, runs on all ranks, and returns named numbers.

The idea, evaluators as plug-ins that yield names and values to whoever logs them, is big_vision's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pipeline.evaluation.subject import Subject


@dataclass(frozen=True)
class Section:
    """A part of the report: its heading, and HTML that needs nothing else (styled by `report.py`)."""

    heading: str
    html: str


@dataclass(frozen=True)
class Findings:
    """What an evaluator found out.

    values: numbers by names that no other evaluator gives, for metrics.json and the logs of a run.
    intervals: 95 % intervals of some of the values, by the same names.
    line, table: the essentials in a line, and all of it, for the console.
    details: more for metrics.json, as plain JSON values.
    per_sample: arrays with one row a sample or query, kept beside metrics.json for paired comparisons.
    sections: makes the parts of the report; asked only where one is written.
    pictures: SVG files by their names, kept beside metrics.json.
    """

    values: Mapping[str, float]
    line: str
    table: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    per_sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    sections: Callable[[], Sequence[Section]] = tuple
    pictures: Mapping[str, str] = field(default_factory=dict)


class Evaluator(Protocol):
    """One task. Made from flags; may be run again and again, on a model as it is then."""

    @property
    def task(self) -> str:
        """Its name for --task and in metrics.json."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the samples' .json that it reads from `Features.columns`."""

    def run(self, subject: Subject) -> Findings | None:
        """Evaluate; every rank calls it, and the main one gets the findings. UsageError where model and data
        do not fit the task.
        """
