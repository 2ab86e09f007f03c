"""What a run leaves behind: its config, its log, its checkpoints, and their copies at an address."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.boards import parse_boards
from pipeline.checkpointing.forms import InParts, OneFile
from pipeline.checkpointing.saver import CheckpointSaver
from pipeline.first_rank import decided_by_first
from pipeline.run_log import RunLog, say
from pipeline.run_mirror import RunMirror
from pipeline.topology import Topology
from pipeline.training.config import TrainConfig
from pipeline.training.resume import data_state
from pipeline.training.saving import Saver
from pipeline.training.start import Start
from pipeline.training.trainer import Trainer
from pipeline.training.validation import Found
from pmc_clip import Tokenizer
from shards import Folder, Mixture
from shards.storage import write_atomically


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, as far as this process writes them: the main process all of them, the others under
    `--fsdp` their parts of the checkpoints. Every process asks the same of them.

    A block (`with files:`) ends when what was being written is there, however it ends.
    """

    topology: Topology
    log: RunLog | None = None
    saver: Saver | None = None
    mirror: RunMirror | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        address: str,
        config: TrainConfig,
        start: Start,
        trainer: Trainer,
        *,
        data: Mixture,
        tokenizer: Tokenizer,
        run: dict[str, Any],
        topology: Topology,
    ) -> Self:
        """Begin or go on with the files of a run that stands as the trainer does.

        folder: the run's on this machine; address: where its checkpoints go, the same or another place.
        run: what it keeps of its flags (`start.run_config`).
        """
        in_parts = bool(trainer.spread)
        if not (topology.is_main or in_parts):
            return cls(topology)
        checkpoints, log, mirror = Folder(f"{address}/checkpoints"), None, None
        if topology.is_main:
            if checkpoints.remote:
                mirror = RunMirror(folder, address)
                mirror.fetch()
                say(f"logs are written to {folder}, and to {address} with each checkpoint")
            log = RunLog(folder, trainer.step, parse_boards(config.report_to), asdict(config))
            write_atomically(folder / "config.json", json.dumps(run, indent=1).encode())
        saver = CheckpointSaver(
            checkpoints,
            config.retention(start.length.epoch),
            step=trainer.step,
            samples_seen=trainer.samples_seen,
            form=InParts(trainer.spread) if in_parts else OneFile(),
            is_main=topology.is_main,
            after_save=mirror.send if mirror else None,
        )
        model = trainer.model.config
        return cls(topology, log, Saver(saver, data_state(data), model, tokenizer.fingerprint(), run), mirror)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.saver:
            self.saver.files.wait()

    def save(self, trainer: Trainer) -> None:
        """Save the run as it stands, unless it was saved so."""
        if self.saver:
            self.saver.save(trainer)

    def write_validation(self, trainer: Trainer, found: Found | None, keep_best: str | None) -> None:
        """Log what a validation found (None: another process knows), and keep the run as it stands if it is
        the best by the metric `keep_best`.
        """
        values = (
            {name: value for one in found.findings for name, value in one.values.items()} if found else {}
        )
        if self.log and found:
            self.log.show(trainer.step, "valid/matches", found.pictures.picture, found.pictures.legend())
            self.log.write(trainer.step, trainer.samples_seen, values, "valid")
            say(f"validation after step {trainer.step:,}: {'; '.join(one.line for one in found.findings)}")
        if keep_best:
            self._keep_if_best(trainer, keep_best, values.get(keep_best, math.nan))

    def _keep_if_best(self, trainer: Trainer, metric: str, value: float) -> None:
        """value: counts on the main process alone."""
        saver = self.saver
        is_best = decided_by_first(
            self.topology, lambda: saver is not None and saver.beats_best(metric, value)
        )
        if saver and is_best:
            saver.keep_best(trainer, metric, value)

    def has_validation(self, step: int) -> bool:
        """Whether the log has what a validation after this step found."""
        return self.log is not None and bool(self.log.kept("valid", step))

    def finish(self) -> None:
        """Close the log and wait for the last checkpoint; DataError if it could not be written."""
        if self.log:
            self.log.close()
        if self.saver:
            self.saver.files.finish()
        if self.mirror:
            self.mirror.send()
