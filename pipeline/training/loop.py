"""The loop of a run: step after step, and between them what is due: entries, checkpoints, validations."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.first_rank import decided_by_first
from pipeline.interruption import Interrupted, Interruption
from pipeline.loader import Loader
from pipeline.topology import Topology
from pipeline.training.config import TrainConfig
from pipeline.training.profiling import StepProfiler
from pipeline.training.progress import Progress
from pipeline.training.run_files import RunFiles
from pipeline.training.start import Start
from pipeline.training.trainer import Trainer
from pipeline.training.validation import Validation


@dataclass(frozen=True)
class Loop:
    """What a run does from where it starts to its end, or until it is asked to end."""

    config: TrainConfig
    start: Start
    trainer: Trainer
    files: RunFiles
    validation: Validation | None
    interruption: Interruption
    topology: Topology
    folder: Path
    """The run's, on this machine."""

    def run(self, loader: Loader, progress: Progress, profiler: StepProfiler) -> bool:
        """Train on the loader's batches; whether the run was asked to end, and has saved, before its end."""
        trainer, length = self.trainer, self.start.length
        log_period = 1 if self.config.debug else self.config.log_every * self.start.step_samples
        save_periods = self.config.save_periods(length.epoch, self.start.step_samples)
        if self._owes_validation() and not self._validate():
            return True
        for batch in loader:
            learning_rate = trainer.learning_rate
            losses = trainer.train_step(batch)
            trainer.non_finite.end_if_hopeless(self.folder)
            profiler.step()
            progress.advance()
            last = trainer.samples_seen >= length.stop
            if last or length.passes(trainer.samples_seen, log_period):
                progress.log(trainer, batch, losses, learning_rate)
            if last or any(length.passes(trainer.samples_seen, period) for period in save_periods):
                self.files.save(trainer)
                progress.restart_clock(trainer.samples_seen)
            given_up = False
            if self.config.is_due(length, trainer.samples_seen):
                given_up = not self._validate()
                progress.restart_clock(trainer.samples_seen)
            if given_up or (not last and self.interruption.agreed()):
                self.files.save(trainer)
                return True
        return False

    def _owes_validation(self) -> bool:
        """Whether the run was killed or asked to end while it validated, and does so now."""
        seen, step = self.trainer.samples_seen, self.trainer.step
        if not (self.start.checkpoint and self.config.is_due(self.start.length, seen)):
            return False
        return decided_by_first(self.topology, lambda: not self.files.has_validation(step))

    def _validate(self) -> bool:
        """Whether it was not given up."""
        if self.validation is None:
            return True
        averaged = self.config.val_weights != "current"
        try:
            with self.trainer.ready_for_evaluation(averaged=averaged) as model:
                found = self.validation.run(model, self.interruption.watch)
        except Interrupted:
            return False
        self.files.write_validation(self.trainer, found, self.config.keep_best)
        return True
