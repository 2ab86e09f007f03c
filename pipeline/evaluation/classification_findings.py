"""Classification figures as findings: values, table, and the parts of a report."""

from collections.abc import Mapping
from html import escape
from typing import Any

from pipeline.evaluation.classification import ClassificationMetrics
from pipeline.evaluation.confusion import confusion_svg
from pipeline.evaluation.evaluator import Findings, Section


def classification_findings(
    task: str, heading: str, metrics: ClassificationMetrics, details: Mapping[str, Any]
) -> Findings:
    """What an evaluator of classification returns; `details`: how it came to its scores."""

    def sections() -> list[Section]:
        return [Section(heading, _html(metrics, details))]

    return Findings(
        values={f"{task}_{name}": value for name, value in metrics.values().items()},
        line=(
            f"{heading.lower()}: top-1 {metrics.top_1:.1%}, balanced {metrics.balanced_accuracy:.1%} of "
            f"{metrics.samples:,} samples in {len(metrics.classes)} classes (chance {metrics.chance:.1%})"
        ),
        table=f"{heading}, {metrics.samples:,} samples in {len(metrics.classes)} classes\n{metrics.table()}",
        details={**details, **metrics.to_dict()},
        sections=sections,
        pictures={f"{task}-confusion.svg": confusion_svg(metrics.confusion, metrics.classes)},
    )


def _html(metrics: ClassificationMetrics, details: Mapping[str, Any]) -> str:
    told = "".join(f"<li>{escape(name)}: {escape(_shown(value))}</li>" for name, value in details.items())
    picture = confusion_svg(metrics.confusion, metrics.classes)
    return f"<ul>{told}</ul>{picture}"


def _shown(value: Any) -> str:
    return "; ".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)
