"""What an evaluation leaves in its folder: metrics.json, report.html, and pictures of some tasks."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.evaluator import Findings
from pipeline.evaluation.report import report_page
from shards.storage import write_atomically


@dataclass(frozen=True)
class EvaluationOutput:
    """The files of an evaluation."""

    folder: Path

    @property
    def metrics(self) -> Path:
        """The figures, and what they are of."""
        return self.folder / "metrics.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / "report.html"

    def write(self, title: str, provenance: Mapping[str, Any], found: Mapping[str, Findings]) -> None:
        """Write the findings of each task. provenance: of which model and data, as plain JSON values."""
        content = {
            **provenance,
            "metrics": {
                name: value for findings in found.values() for name, value in findings.values.items()
            },
            "intervals": {n: list(i) for findings in found.values() for n, i in findings.intervals.items()},
            **{task: findings.details for task, findings in found.items() if findings.details},
        }
        write_atomically(self.metrics, json.dumps(content, indent=1).encode())
        for findings in found.values():
            for name, picture in findings.pictures.items():
                write_atomically(self.folder / name, picture.encode())
        sections = [section for findings in found.values() for section in findings.sections()]
        tables = "\n\n".join(findings.table for findings in found.values())
        write_atomically(self.report, report_page(title, tables, sections).encode())


def _merged(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for mapping in mappings for name, value in mapping.items()}
