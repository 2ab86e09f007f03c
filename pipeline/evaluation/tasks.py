"""The tasks that `pipeline.evaluate --task` knows."""

from collections.abc import Iterable
from typing import Literal

from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.retrieval import RetrievalEvaluator
from pipeline.evaluation.task_flags import TaskFlags
from pipeline.topology import Topology

Task = Literal["retrieval", "zeroshot", "probe", "knn", "mlm"]


def make_evaluator(task: Task, flags: TaskFlags, topology: Topology) -> Evaluator:
    """The evaluator of a task, as the flags have it."""
    if task == "retrieval":
        return RetrievalEvaluator(flags.group_key, flags.seed, detailed=True)
    return flags.evaluator(task, topology)


def columns_of(evaluators: Iterable[Evaluator]) -> tuple[str, ...]:
    """All columns that evaluators read, each once."""
    return tuple(dict.fromkeys(name for evaluator in evaluators for name in evaluator.columns))
