"""The evaluator of retrieval: image→text and text→image."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation.evaluator import Findings, Section
from pipeline.evaluation.gathering import gather_rows
from pipeline.evaluation.retrieval_metrics import RetrievalMetrics, retrieval_metrics
from pipeline.evaluation.retrieval_sheet import example_queries
from pipeline.evaluation.subject import Subject


@dataclass(frozen=True)
class RetrievalEvaluator:
    """Ranks every image's caption among all captions, and every caption's image among all images."""

    task: str = "retrieval"
    columns: Sequence[str] = ()

    def run(self, subject: Subject) -> Findings | None:
        """Figures of the whole data set."""
        image = gather_rows(subject.features.image, subject.topology)
        text = gather_rows(subject.features.text, subject.topology)
        if not subject.topology.is_main:
            return None
        metrics: RetrievalMetrics = retrieval_metrics(image, text)

        def sections() -> list[Section]:
            return example_queries(subject.dataset, image, text)

        return Findings(metrics.to_dict(), metrics.line(), metrics.table(), sections=sections)
