"""The flags of `pipeline.train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipeline.checks import check_at_least, check_share, local_path
from pipeline.data import parse_sources
from pipeline.loading_flags import LoadingFlags
from pipeline.packed_table import check_tables
from pipeline.training.compilation import check_compiler
from pipeline.training.objective import MatchLossName, Objective
from pmc_clip import ModelError
from pmc_clip.losses import LossWeights
from shards import DEFAULT_LANES, UsageError

DEFAULT_BATCH, DEFAULT_EPOCHS, DEFAULT_WEIGHTS = 64, 10, "0.5,0.5"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoadingFlags):
    """What a training run is asked to do."""

    train_data: tuple[str, ...]
    """Data sets, each a path or an address such as s3://bucket/prefix, or a table of images and captions;
    with weights, A=0.7 B=0.3.
    """
    val_data: str | None = None
    """Validation data: a folder of shards, or a table."""
    model: str = "RN50_fusion4"
    """Name of a model config, or the path of one (JSON)."""
    pretrained: str | None = None
    """Weights to start from: a tag (beta, PMC_CLIP:beta), a path, or an address such as hf-hub:owner/name.
    A resumed run goes on from its checkpoint instead.
    """
    batch_size: int | None = None
    """Samples in a batch of each process (64 unless --global-batch-size is given)."""
    global_batch_size: int | None = None
    """Samples in a batch of all processes together, in place of --batch-size."""
    epochs: int | None = None
    """Passes over the training data (10 unless --steps is given); the learning rate falls to zero over them.
    """
    steps: int | None = None
    """Stop after this many optimiser steps; without --epochs, the learning rate falls to zero over these."""
    lr: float = 1e-4
    """Peak learning rate."""
    warmup: int | None = None
    """Optimiser steps of linear warm-up; without it, a tenth of the run but at most 10,000."""
    wd: float = 0.2
    """Weight decay of AdamW."""
    beta1: float = 0.9
    """AdamW's first decay rate."""
    beta2: float = 0.999
    """AdamW's second decay rate."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    loss: MatchLossName = "contrastive"
    """Loss of matching images with captions: contrastive, as published, or siglip, a sigmoid for each pair.
    """
    mlm: bool = False
    """Train masked-token prediction beside matching."""
    mask_ratio: float = 0.15
    """Share of a caption's words that are masked, with --mlm."""
    loss_weights: Annotated[str, tyro.conf.arg(aliases=["--loss-weight"])] = DEFAULT_WEIGHTS
    """Weights of the matching and the masked-token loss, with --mlm; or a published code: 0 (0.5,0.5),
    5 (0.33,0.66), 9 (1,0), 10 (0,1). A loss of weight 0 is still computed and logged.
    """
    ignore_same_captions: bool = False
    """Samples with the same caption are never each other's negatives, as a sample with itself never is."""
    mask_padding: bool = False
    """Keep padding out of the text tower, which makes the model another; captions are padded to the batch's
    longest. Part of the model, stored in its checkpoints; without it, as the model config says.
    """
    precision: Literal["bf16", "fp32"] | None = None
    """Arithmetic of the model; without it, bf16 autocast on a GPU and fp32 on a CPU."""
    accum: int = 1
    """Parts that each process computes its batch in, one after the other, to need less memory; loss and
    gradients stay those of the whole batch (batch-norm statistics are those of the parts).
    """
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster steps after."""
    lanes: int = DEFAULT_LANES
    """Places of the data set read side by side; more shuffle better and need more memory."""
    seed: int = 0
    """Seed of the weights, the order, the crops, the masking and the dropout."""
    val_frequency: int = 1
    """Epochs between validations."""
    save_every: int | None = None
    """Optimiser steps between checkpoints; without it, one at the end of every epoch."""
    log_every: Annotated[int, tyro.conf.arg(aliases=["--log-every-n-steps"])] = 10
    """Optimiser steps between log entries."""
    resume: str | None = None
    """`auto` (the run's newest checkpoint, or a fresh start) or the path of a checkpoint."""
    name: str | None = None
    """Name of the run; without it, model and data set."""
    logs: str = "runs"
    """Folder of runs."""

    def check(self) -> None:
        """Raise UsageError where values are out of range or contradict each other."""
        self.check_loading()
        check_at_least(self, batch_size=1, global_batch_size=1, epochs=1, steps=1, warmup=0, lanes=1)
        check_at_least(self, accum=1, val_frequency=1, save_every=1, log_every=1, wd=0, seed=0)
        check_share(self, "mask_ratio")
        if self.batch_size and self.global_batch_size:
            raise UsageError(
                "--batch-size and --global-batch-size say the same thing twice: give one of them"
            )
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"--{name} {getattr(self, name)}: it must be above 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: it must be at least 0 and below 1")
        if self.name is not None and (not self.name.strip(".") or Path(self.name).name != self.name):
            raise UsageError(f"--name {self.name}: a run's name is one folder's name; its place is --logs")
        local_path("--logs", self.logs)
        check_tables(self, [*parse_sources(self.train_data)[0], *filter(None, [self.val_data])])
        weights = self.objective().weights
        if not self.mlm and (not weights.match or (weights.mlm and self.loss_weights != DEFAULT_WEIGHTS)):
            raise UsageError(
                f"--loss-weights {self.loss_weights}: the second number is of masked-token prediction, which "
                "--mlm trains: give both flags or none"
            )
        if self.compile:
            check_compiler()

    def check_parts(self, batch: int) -> None:
        """Raise UsageError where a process's batch has fewer samples than parts."""
        if self.accum > batch:
            raise UsageError(
                f"--accum {self.accum}: a process's batch has {batch} samples, and each part needs "
                f"one; give at most {batch}"
            )

    def objective(self) -> Objective:
        """What --loss, --loss-weights and --ignore-same-captions stand for."""
        try:
            weights = LossWeights.parse(self.loss_weights)
        except ModelError as error:
            raise UsageError(f"--loss-weights: {error}") from error
        return Objective(self.loss, weights, self.ignore_same_captions)
