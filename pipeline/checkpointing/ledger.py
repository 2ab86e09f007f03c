"""What a run has written beside its checkpoints about them: which are its own, and which was the best."""

import json
from dataclasses import asdict, dataclass, field
from typing import Self

from pipeline.checkpointing.retention import Kept
from shards import Folder

LEDGER = "saved.json"


@dataclass(frozen=True)
class Best:
    """The checkpoint that `best.pt` is, or that `best` names."""

    metric: str
    value: float
    step: int


@dataclass
class Ledger:
    """The checkpoints of a run's folder that the run itself wrote, by step. Only these are ever deleted."""

    checkpoints: list[Kept] = field(default_factory=list)
    best: Best | None = None

    @classmethod
    def read(cls, folder: Folder) -> Self:
        """What the run wrote before; an absent or unreadable ledger lets every file be somebody else's."""
        try:
            content = json.loads(folder.read(LEDGER))
            there = {*folder.names(), *folder.folders()}
            checkpoints = [Kept(**entry) for entry in content["checkpoints"] if entry["name"] in there]
            return cls(checkpoints, Best(**content["best"]) if content["best"] else None)
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return cls()

    def write(self, folder: Folder) -> None:
        """Replace the file."""
        folder.write(LEDGER, json.dumps(asdict(self), indent=1).encode())

    def add(self, checkpoint: Kept) -> None:
        """Enter a checkpoint in place of those of its step and of later ones, which it makes another past
        of.
        """
        self.checkpoints = [kept for kept in self.checkpoints if kept.step < checkpoint.step]
        self.checkpoints.append(checkpoint)

    def forget_after(self, step: int) -> None:
        """Leave what lies beyond the step that a run goes on from to whoever looks after damaged files."""
        self.checkpoints = [kept for kept in self.checkpoints if kept.step <= step]
