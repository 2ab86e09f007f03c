"""The tasks that `pipeline.evaluate --task` knows."""

from collections.abc import Iterable
from typing import Literal

from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.retrieval import RetrievalEvaluator

Task = Literal["retrieval"]


def make_evaluator(task: Task) -> Evaluator:
    """The evaluator of a task."""
    return {"retrieval": RetrievalEvaluator}[task]()


def columns_of(evaluators: Iterable[Evaluator]) -> tuple[str, ...]:
    """All columns that evaluators read, each once."""
    return tuple(dict.fromkeys(name for evaluator in evaluators for name in evaluator.columns))
