"""The flags of single tasks of `pipeline.evaluate`, and the evaluators that they stand for."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.checks import check_at_least, check_share, flag_name, local_path
from pipeline.evaluation.classes import Classes
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.frozen_features import FrozenFeaturesEvaluator
from pipeline.evaluation.labels import LabelSource
from pipeline.evaluation.masked_tokens import MASK_RATIO, MaskedTokensEvaluator
from pipeline.evaluation.probe import NEIGHBOURS
from pipeline.evaluation.zeroshot import ZeroShotEvaluator
from pipeline.open_data import open_data
from pipeline.table_flags import TableFlags
from pipeline.topology import Topology
from shards import Dataset, UsageError

# Whose tasks a flag is; given without one of them it would do nothing.
_TASKS_OF = {
    "group_key": ("retrieval",),
    "classes": ("zeroshot", "probe", "knn"),
    "label_key": ("zeroshot", "probe", "knn"),
    "labels": ("zeroshot", "probe", "knn"),
    "fit_data": ("probe", "knn"),
    "val_data": ("probe",),
    "neighbours": ("knn",),
    "mask_ratio": ("mlm",),
}


@dataclass(frozen=True, kw_only=True)
class TaskFlags(TableFlags):
    """What the tasks are to do."""

    group_key: str | None = None
    """Column of the samples' .json whose value makes samples a group, in which any answer counts; without it,
    samples with a caption in common are one.
    """
    seed: int = 0
    """Seed of what is drawn: the samples of --limit, the resamples of the intervals, the queries shown."""
    classes: str | None = None
    """File of classes (JSON): their labels, names and prompts; see docs/evaluation.md."""
    label_key: str | None = None
    """Column with the label: of the samples' .json, or of --labels; without it, the one that --classes names,
    or label.
    """
    labels: str | None = None
    """Table of labels, with the columns image (the image's name or the sample's key) and --label-key; without
    it, the samples carry them.
    """
    fit_data: str | None = None
    """Labelled data that probe and knn learn from: a folder of shards, or a table."""
    val_data: str | None = None
    """Validation data: a folder of shards, or a table; probe chooses its penalty there, and without it on a
    fifth of --fit-data.
    """
    neighbours: int = NEIGHBOURS
    """Nearest samples that knn asks."""
    mask_ratio: float = MASK_RATIO
    """Share of a caption's words that are masked, in mlm."""

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Raise UsageError where a task lacks a flag, or a flag its task."""
        check_at_least(self, neighbours=1, seed=0)
        check_share(self, "mask_ratio")
        for name, owners in _TASKS_OF.items():
            if getattr(self, name) != TaskFlags.__dataclass_fields__[name].default and not {*owners} & {
                *tasks
            }:
                raise UsageError(
                    f"{flag_name(name)} is for --task {' or '.join(owners)}: give one of them, too"
                )
        if "zeroshot" in tasks and self.classes is None:
            raise UsageError(
                "--task zeroshot needs --classes FILE: the classes and the words that stand for each"
            )
        if self.fit_data is None and (needing := {"probe", "knn"} & {*tasks}):
            raise UsageError(
                f"--task {' '.join(sorted(needing))} needs --fit-data: labelled data to learn from"
            )

    def evaluator(self, task: str, topology: Topology) -> Evaluator:
        """The evaluator of one of these tasks; opens the data that it needs beside the evaluated ones."""
        if task == "mlm":
            return MaskedTokensEvaluator(self.mask_ratio)
        classes = Classes.read(local_path("--classes", self.classes)) if self.classes else None
        key = self.label_key or (classes.label_key if classes else None) or "label"
        labels = LabelSource.of_table(self.labels, key) if self.labels else LabelSource.of_column(key)
        if task == "zeroshot":
            assert classes is not None
            return ZeroShotEvaluator(classes, labels)
        assert self.fit_data is not None
        return FrozenFeaturesEvaluator(
            "probe" if task == "probe" else "knn",
            open_data(self.fit_data, topology, self),
            labels,
            self._validation_data(topology) if task == "probe" else None,
            classes,
            self.neighbours,
        )

    def _validation_data(self, topology: Topology) -> Dataset | None:
        return open_data(self.val_data, topology, self) if self.val_data else None
