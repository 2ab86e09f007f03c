"""What a run leaves to read: `metrics.jsonl`, TensorBoard files, `config.json`, and a progress line."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.storage import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """The main process's log of a run in `folder`; after a resume at `step`, nothing later is left from
    before. A disk that takes no more costs entries, never the run: that is said once, until it does again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        entries = _entries(self._path, step)
        self._kept = {(entry["kind"], entry["step"]) for entry in entries}
        write_atomically(self._path, "".join(f"{json.dumps(entry)}\n" for entry in entries).encode())
        self._file = open(self._path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        self._board = _open_board(folder, step + 1)
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

    def _write(
        self, step: int, samples_seen: int, values: Mapping[str, float], kind: str, notes: dict[str, str]
    ) -> None:
        entry = {"kind": kind, "step": step, "samples_seen": samples_seen, **values, **notes}
        self._file.write(json.dumps(entry) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        for name, text in notes.items():
            self._board.add_text(f"{kind}/{name}", text, step)

    def close(self) -> None:
        """Flush and close the files."""
        for file in (self._file, self._board):
            with self._bearing_refusals():
                file.close()

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
                    self._board = _open_board(self._path.parent, step + 1)


def _open_board(folder: Path, step: int) -> "SummaryWriter":
    """TensorBoard's writer of entries from a step on; what a killed process wrote of these counts no more."""
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import: only for who writes

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)


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
