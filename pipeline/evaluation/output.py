"""What an evaluation leaves in its folder.

metrics.json     the figures, and what they are of
report.html      the same as a page, with curves and examples
ids.txt          the ids of the samples, one a line: `--ids` takes it
confusion.svg    pictures of some tasks
retrieval.npz    of each task that has them: arrays with a row for each sample, for `pipeline.compare`
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.evaluator import Findings
from pipeline.evaluation.report import report_page
from shards.storage import write_atomically

METRICS, REPORT, IDS = "metrics.json", "report.html", "ids.txt"


@dataclass(frozen=True)
class EvaluationOutput:
    """The files of an evaluation."""

    folder: Path

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT

    def write(
        self, title: str, provenance: Mapping[str, Any], found: Mapping[str, Findings], ids: Sequence[str]
    ) -> None:
        """Write the findings of each task. provenance: of which model and data, as plain JSON values."""
        content = {
            **provenance,
            "metrics": _merged(findings.values for findings in found.values()),
            "intervals": _merged(findings.intervals for findings in found.values()),
            **{task: findings.details for task, findings in found.items() if findings.details},
        }
        listed = "".join(f"{name}\n" for name in ids)
        write_atomically(self.folder / IDS, listed.encode("utf-8", "surrogateescape"))
        for task, findings in found.items():
            for name, picture in findings.pictures.items():
                write_atomically(self.folder / name, picture.encode())
            if findings.per_sample:
                packed = io.BytesIO()
                np.savez_compressed(packed, allow_pickle=False, **findings.per_sample)
                write_atomically(self.folder / f"{task}.npz", packed.getvalue())
        sections = [section for findings in found.values() for section in findings.sections()]
        write_atomically(self.report, report_page(title, _facts(provenance), sections).encode())
        write_atomically(self.folder / METRICS, json.dumps(content, indent=1).encode())


def write_to_board(run: Path, data: str, step: int, found: Mapping[str, Findings]) -> None:
    """Add the values to the TensorBoard files of the run that a checkpoint is of, at its step."""
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import

    with SummaryWriter(str(run / "tensorboard" / "evaluation")) as board:
        for findings in found.values():
            for name, value in findings.values.items():
                board.add_scalar(f"evaluation/{data}/{name}", value, step)


def _facts(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What a reader of the report must know, in words."""
    subset, versions = provenance["subset"], provenance["versions"]
    preprocessing = provenance["preprocessing"]
    facts = {
        "data": provenance["data"],
        "checkpoint": provenance["checkpoint"],
        "samples": f"{provenance['pairs']:,}",
    }
    if subset:
        facts["subset"] = ", ".join(f"{name} {value}" for name, value in subset.items())
    if "step" in provenance:
        facts["after"] = f"{provenance['step']:,} steps, {provenance['samples_seen']:,} samples"
    return facts | {
        "data fingerprint": provenance["fingerprint"][:16],
        "model fingerprint": provenance["model_fingerprint"],
        "preprocessing": f"{preprocessing['image_size']} pixels, {preprocessing['decode']} decoding",
        "software": f"{versions['pmc-clip-stream']}, torch {versions['torch']}",
    }


def _merged(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for mapping in mappings for name, value in mapping.items()}
