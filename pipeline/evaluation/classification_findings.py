"""Classification figures as findings: values, table, and the parts of a report."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from pipeline.evaluation.classification import ClassificationMetrics
from pipeline.evaluation.confusion import confusion_svg
from pipeline.evaluation.evaluator import Findings, Section


def classification_findings(
    task: str,
    heading: str,
    metrics: ClassificationMetrics,
    details: Mapping[str, Any],
    ids: Sequence[str],
) -> Findings:
    """What an evaluator of classification returns; `details`: how it came to its scores; `ids`: of the
    samples.
    """

    hits = metrics.hits
    per_sample = {
        "ids": np.array(ids, dtype=np.str_),
        "label": np.array(metrics.classes, dtype=np.str_)[hits.labels],
        "top_1": hits.top_1,
        **({} if hits.top_5 is None else {"top_5": hits.top_5}),
    }

    def sections() -> list[Section]:
        return [Section(heading, _html(metrics, details))]

    return Findings(
        values={f"{task}_{name}": value for name, value in metrics.values().items()},
        line=(
            f"{heading.lower()}: top-1 {metrics.top_1:.1%}, balanced {metrics.balanced_accuracy:.1%} of "
            f"{metrics.samples:,} samples in {len(metrics.classes)} classes (chance {metrics.chance:.1%})"
        ),
        table=f"{heading}, {metrics.samples:,} samples in {len(metrics.classes)} classes\n{metrics.table()}",
        intervals={f"{task}_{name}": ends for name, ends in metrics.intervals.items()},
        details={**details, **metrics.to_dict()},
        per_sample=per_sample,
        sections=sections,
        pictures={f"{task}-confusion.svg": confusion_svg(metrics.confusion, metrics.classes)},
    )


def _html(metrics: ClassificationMetrics, details: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{value:.1%}</td>"
        f'<td class="interval">{f"{ends[0]:.1%} – {ends[1]:.1%}" if ends else ""}</td></tr>'
        for name, value, ends in metrics.rows()
    )
    told = "; ".join(f"{name}: {_shown(value)}" for name, value in details.items())
    return (
        f'<div class="tables"><div class="scroll"><table><caption>{metrics.samples:,} samples, '
        f"{len(metrics.classes)} classes, with 95 % intervals</caption><tbody>{rows}</tbody></table>"
        f'<p class="note">{escape(told)}.</p></div>'
        f"<figure>{confusion_svg(metrics.confusion, metrics.classes)}</figure></div>"
    )


def _shown(value: Any) -> str:
    return "; ".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)
