"""What a run leaves to read: `metrics.jsonl`, TensorBoard files, `config.json`, and a progress line."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.boards import open_boards
from shards.storage import write_atomically


class RunLog:
    """The main process's log of a run in `folder`; after a resume at `step`, nothing later is left from
    before. A disk that takes no more costs entries, never the run: that is said once, until it does again.

    report_to: the boards that show the figures, too. settings: of the run, shown beside its last figures.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        report_to: Sequence[str] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._report_to, self._settings = report_to, settings or {}
        entries = _entries(self._path, step)
        self._kept = {(entry["kind"], entry["step"]) for entry in entries}
        self._last: dict[str, float] = {}
        write_atomically(self._path, "".join(f"{json.dumps(entry)}\n" for entry in entries).encode())
        self._file = open(self._path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        self._boards = open_boards(report_to, folder, step, self._settings)
        self._refused = False

    def kept(self, kind: str, step: int) -> bool:
        """Whether there is an entry from before of a kind and a step."""
        return (kind, step) in self._kept

    def write(
        self,
        step: int,
        samples_seen: int,
        values: Mapping[str, float],
        kind: str,
        notes: dict[str, str] | None = None,
    ) -> None:
        """Add one entry of named values, and notes in words; `kind` is "train", "valid" or "loader"."""
        with self._bearing_refusals(step):
            self._write(step, samples_seen, values, kind, notes or {})

    def show(self, step: int, name: str, picture: np.ndarray, legend: str) -> None:
        """Show a picture ([H, W, 3] uint8) and what is on it, on the boards."""
        with self._bearing_refusals(step):
            for board in self._boards:
                board.add_picture(step, name, picture)
                board.add(step, {}, {f"{name}_legend": legend})

    def _write(
        self, step: int, samples_seen: int, values: Mapping[str, float], kind: str, notes: dict[str, str]
    ) -> None:
        # JSON has no NaN: the loss of a step that was skipped, say, is null.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        entry = {"kind": kind, "step": step, "samples_seen": samples_seen, **known, **notes}
        self._file.write(json.dumps(entry) + "\n")
        shown = {f"{kind}/{name}": value for name, value in values.items()}
        if kind != "loader":
            self._last |= shown
        for board in self._boards:
            board.add(
                step,
                {**shown, f"{kind}/samples_seen": samples_seen},
                {f"{kind}/{name}": text for name, text in notes.items()},
            )

    def close(self) -> None:
        """Flush and close the files; the boards show the settings beside the last figures."""
        with self._bearing_refusals():
            self._file.close()
        for board in self._boards:
            with self._bearing_refusals():
                board.finish(self._settings, self._last)

    @contextmanager
    def _bearing_refusals(self, step: int | None = None) -> Iterator[None]:
        try:
            yield
            self._refused = False
        except OSError as error:
            if not self._refused:
                say(f"warning: {self._path.parent}: the log could not be written ({error}); the run goes on")
            self._refused = True
            if step is not None:  # a writer that has failed once does not write again
                with suppress(OSError):
                    self._boards = open_boards(self._report_to, self._path.parent, step, self._settings)


def _entries(path: Path, step: int) -> list[dict[str, Any]]:
    """The entries up to `step`; a last line that a kill cut short is dropped."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("step", step + 1) <= step and "kind" in entry:
            entries.append(entry)
    return entries


def say(message: str, *, main: bool = True) -> None:
    """Print a line for a person to follow, on the main process."""
    if main:
        print(message, file=sys.stderr, flush=True)
