"""Where a run leaves what it has to show, and how often it says something: the flags."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.boards import parse_boards
from pipeline.checks import check_at_least
from shards import UsageError
from shards.storage import is_remote


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """What a run says, and where."""

    log_every: Annotated[int, tyro.conf.arg(aliases=["--log-every-n-steps"])] = 10
    """Optimiser steps between log entries, of the run's first batch size."""
    report_to: str = "tensorboard"
    """Where figures are shown beside metrics.jsonl: tensorboard, wandb, both with a comma between, or ''."""
    profile: bool = False
    """Write a trace of three of the first steps into the run's folder, for ui.perfetto.dev."""
    name: str | None = None
    """Name of the run; without it, model and data set."""
    logs: str = "runs"
    """Folder of runs: a path, or an address such as s3://bucket/runs."""
    debug: bool = False
    """Say more: all settings, an entry for every step, and where in the code an error came from."""

    def check_report(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, log_every=1)
        parse_boards(self.report_to)
        if self.name is not None and (not self.name.strip(".") or Path(self.name).name != self.name):
            raise UsageError(f"--name {self.name}: a run's name is one folder's name; its place is --logs")

    def run_folder(self, model: str, data: str) -> Path:
        """The run's folder on this machine; a run without a name has that of its model and data set.

        Of --logs s3://bucket/runs it lies in runs/s3/bucket/runs.
        """
        logs = (
            Path("runs", *self.logs.split("://"))
            if is_remote(self.logs)
            else Path(self.logs.removeprefix("file://"))
        )
        return logs / (self.name or f"{Path(model).stem}-{data}")

    def run_address(self, folder: Path) -> str:
        """Where the run in a folder of this machine is kept: there, or at an address."""
        return f"{self.logs.rstrip('/')}/{folder.name}" if is_remote(self.logs) else str(folder)
