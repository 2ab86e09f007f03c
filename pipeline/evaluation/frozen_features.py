"""The evaluators of frozen image features: a linear probe, and nearest neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.evaluation.classes import Classes
from pipeline.evaluation.classification import ClassificationMetrics
from pipeline.evaluation.classification_findings import classification_findings
from pipeline.evaluation.evaluator import Findings
from pipeline.evaluation.features import Features
from pipeline.evaluation.gathering import gather_list, gather_rows
from pipeline.evaluation.labels import LabelSource, class_numbers
from pipeline.evaluation.probe import NEIGHBOURS, linear_probe, nearest_neighbours
from pipeline.evaluation.subject import Subject
from pipeline.wording import counted
from shards import Dataset, UsageError
from shards.hashing import derive

_HELD_OUT = 5  # without validation data, one of so many samples of each class validates


@dataclass(frozen=True)
class Labelled:
    """Image features [N, D] float32 of a whole data set, with the label of each."""

    data: str
    features: np.ndarray
    labels: list[str | None]


@dataclass(frozen=True)
class FrozenFeaturesEvaluator:
    """Learns classes from image features of `fit_data`, and tells them apart in what is evaluated.

    validation_data: where the probe's C is chosen; without it, on a fifth of what is learnt from.
    classes: without it, those that `fit_data` has.
    """

    task: Literal["probe", "knn"]
    fit_data: Dataset
    labels: LabelSource
    validation_data: Dataset | None = None
    classes: Classes | None = None
    neighbours: int = NEIGHBOURS

    @property
    def columns(self) -> Sequence[str]:
        """What the labels are read from."""
        return self.labels.columns

    def run(self, subject: Subject) -> Findings | None:
        """Features on all ranks, the rest on the main one."""
        test, ids = self._gathered(subject, subject.dataset, subject.features), subject.ids
        fit = self._computed(subject, self.fit_data)
        validation = None
        if self.task == "probe" and self.validation_data is not None:
            validation = self._computed(subject, self.validation_data)
        if not subject.topology.is_main:
            return None
        names = self.classes.labels if self.classes else _classes_of(fit)
        known, own = self._numbers(fit, names), self._numbers(test, names)
        if len(np.unique(known)) < 2:
            raise UsageError(f"{fit.data}: all samples have one label, and at least two classes are needed")
        if self.task == "knn":
            scores = nearest_neighbours((fit.features, known), test.features, len(names), self.neighbours)
            details = {"neighbours": min(self.neighbours, len(known)), "learnt from": fit.data}
            heading = "Nearest neighbours on frozen image features"
        else:
            if validation is not None:
                learnt = (fit.features, known)
                checked = (validation.features, self._numbers(validation, names))
            else:
                held = held_out(known)
                learnt = (fit.features[~held], known[~held])
                checked = (fit.features[held], known[held])
            probe = linear_probe(learnt, checked, test.features, len(names))
            scores = probe.scores
            details = {
                "C": probe.c,
                "validation accuracy": probe.validation_accuracy,
                "learnt from": f"{fit.data}, {counted(len(learnt[1]), 'sample')}",
                "converged": probe.converged,
            }
            heading = "Linear probe on frozen image features"
        metrics = ClassificationMetrics.from_scores(scores, own, names)
        return classification_findings(self.task, heading, metrics, details, ids)

    def _numbers(self, data: Labelled, names: Sequence[str]) -> np.ndarray:
        return class_numbers(data.labels, names, self.labels, data.data)

    def _computed(self, subject: Subject, dataset: Dataset) -> Labelled:
        return self._gathered(subject, dataset, subject.image_features(dataset, self.columns))

    def _gathered(self, subject: Subject, dataset: Dataset, features: Features) -> Labelled:
        return Labelled(
            dataset.folder.address,
            gather_rows(features.image.read(), subject.topology).numpy(),
            gather_list(self.labels.of(features), subject.topology),
        )


def held_out(labels: np.ndarray) -> np.ndarray:
    """[N] bool: the samples that validate where there is nothing else to do so, a fifth of every class of two
    or more, the same ones every time.
    """
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            drawn = np.argsort(derive(0, members), kind="stable")
            held[members[drawn[: max(1, len(members) // _HELD_OUT)]]] = True
    return held


def _classes_of(data: Labelled) -> tuple[str, ...]:
    """All labels there are, numbers by size."""
    found = {label for label in data.labels if label is not None}
    if all(label.lstrip("-").isdigit() for label in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))
