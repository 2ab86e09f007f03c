"""What a person sees of a run while it trains: a progress bar or plain lines, and the log's entries."""

import sys

import torch
from tqdm import tqdm

from pipeline.data import source_counts
from pipeline.loader import Batch, Loader
from pipeline.run_log import RunLog, say
from pipeline.stage_report import LEAST_SECONDS, Snapshot, StageReport
from pipeline.topology import Topology
from pipeline.training.length import RunLength
from pipeline.training.summary import forecast, time_left
from pipeline.training.trainer import Trainer, average_over_ranks
from pmc_clip.accumulation import Losses
from shards import Mixture

_SETTLED = 3  # entries after which the speed says when the run will end


class Progress:
    """Follows a run on the main process; on the others it takes part in averaging the losses and names bad
    samples. data: the run's data sets, whose samples are counted one by one where there are several.
    """

    def __init__(
        self,
        loader: Loader,
        log: RunLog | None,
        topology: Topology,
        length: RunLength,
        data: Mixture | None = None,
    ) -> None:
        self._loader, self._log, self._topology, self._length = loader, log, topology, length
        self._data = data
        shows_bar = topology.is_main and sys.stderr.isatty()
        self._bar = tqdm(
            initial=length.start,
            total=length.stop,
            unit="sample",
            unit_scale=True,
            disable=not shows_bar,
            leave=True,
        )
        self._plain = topology.is_main and not shows_bar
        self._before, self._seen = Snapshot.take(loader), length.start
        self._judged = self._before  # the verdict is on what came since: entries may be too close together
        self._bad_told = self._entries = 0
        self._flops: float | None = None  # of a sample, once they are counted

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._tell_bad_samples()
        self._bar.close()

    def advance(self) -> None:
        """Count one step."""
        self._bar.update(self._length.global_batch)

    def log(self, trainer: Trainer, batch: Batch, losses: Losses, learning_rate: float) -> None:
        """Write the entry of the step just taken; every rank must call it."""
        named: dict[str, torch.Tensor] = {"loss": losses.total, "match_loss": losses.match}
        if losses.mlm is not None:
            named["mlm_loss"] = losses.mlm
        substituted = torch.tensor(self._loader.stats.substituted, device=losses.total.device)
        values = average_over_ranks(named | {"substituted_samples": substituted}, self._topology)
        values["substituted_samples"] = round(values["substituted_samples"] * self._topology.world_size)
        now = Snapshot.take(self._loader)
        self._tell_bad_samples()
        report = StageReport.between(self._before, now)
        seen = trainer.samples_seen - self._seen
        rate = seen / report.seconds
        values |= {
            "learning_rate": learning_rate,
            "gradient_norm": float(trainer.gradient_norm),
            "skipped_steps": trainer.non_finite.count(),
            **trainer.logit_parameters,
            "epoch": trainer.samples_seen / self._length.epoch,
            "samples_per_second": rate,
            "step_seconds": report.seconds * trainer.global_batch / seen,
            "loader_wait": report.waits,
            **self._device_values(trainer, batch, rate),
        }
        if trainer.loss_scale is not None:
            values["loss_scale"] = trainer.loss_scale
        if self._data:
            values |= source_counts(self._data, trainer.samples_seen)
        self._before, self._seen = Snapshot.take(self._loader), trainer.samples_seen
        if not self._log:
            return
        judged = StageReport.between(self._judged, now)
        verdict = judged.verdict("training")
        if judged.seconds >= LEAST_SECONDS:
            self._judged = self._before
        self._log.write(trainer.step, trainer.samples_seen, report.values(), "loader", {"verdict": verdict})
        self._log.write(trainer.step, trainer.samples_seen, values, "train")
        text = f"loss {values['loss']:.3f}  lr {learning_rate:.2e}  {rate:,.0f} samples/s  {verdict}"
        self._bar.set_postfix_str(text)
        left = time_left(trainer.samples_seen, self._length, rate)
        if self._plain:
            share = trainer.samples_seen / max(1, self._length.stop)
            say(f"step {trainer.step:,}  epoch {values['epoch']:.2f}  {share:.0%}  {left} left  {text}")
        self._entries += 1
        if self._entries == _SETTLED and left:
            memory = values.get("gpu_memory_gb")
            self._bar.write(forecast(left, memory), file=sys.stderr)

    def _device_values(self, trainer: Trainer, batch: Batch, rate: float) -> dict[str, float]:
        """What the device does: its memory, operations a second, and their share of what it can do."""
        if self._flops is None:
            self._flops = trainer.flops_per_sample(batch)
        tflops = self._flops * rate / self._topology.world_size / 1e12
        values = {"tflops_per_second": tflops}
        if peak := trainer.peak_tflops:
            values["model_flop_utilisation"] = tflops / peak
        if torch.cuda.is_available():
            values["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return values

    def _tell_bad_samples(self) -> None:
        """Name the samples of this process that were substituted since it was last called."""
        name = f"rank {self._topology.rank}: " if self._topology.world_size > 1 else ""
        for reason in self._loader.bad_samples[self._bad_told :]:
            self._bar.write(f"{name}substituted: {reason}", file=sys.stderr)
            self._bad_told += 1

    def restart_clock(self, samples_seen: int) -> None:
        """Leave the time since the last entry (a validation, a checkpoint) out of the rates."""
        self._before, self._seen = Snapshot.take(self._loader), samples_seen
        self._judged = self._before
