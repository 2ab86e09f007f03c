"""How one training step computes: its flags, and what they stand for."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from pipeline.checks import check_at_least
from pipeline.topology import Topology
from pipeline.training.compilation import check_compiler
from pipeline.training.nonfinite import DEFAULT_MAX_NONFINITE
from pipeline.training.objective import Objective
from shards import UsageError

Precision = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class StepOptions:
    """What a step computes, and how."""

    objective: Objective = field(default_factory=Objective)
    precision: Precision = "fp32"
    """What the model runs in where autocast lowers it; weights, losses and updates are always in float32."""
    parts: int = 1
    """In how many parts a rank computes its batch, one after the other."""
    compiled: bool = False
    """Whether the model's forward and backward pass are compiled."""
    grad_checkpointing: bool = False
    """Whether blocks keep their inputs alone and are computed again on the way back."""
    fsdp: bool = False
    """Whether each of several processes keeps a part of the model alone."""
    max_nonfinite: int = DEFAULT_MAX_NONFINITE
    """Steps in a row with a loss or gradient that is not finite that are one too many."""


@dataclass(frozen=True, kw_only=True)
class StepFlags:
    """How a step computes."""

    precision: Precision | None = None
    """Arithmetic of the model: bf16, fp16 with a scaled loss, or fp32 (on GPUs with TF32), over weights in
    float32; without it, bf16 on a GPU and fp32 on a CPU.
    """
    accum: int = 1
    """Parts that each process computes its batch in, one after the other, to need less memory; loss and
    gradients stay those of the whole batch (batch-norm statistics are those of the parts).
    """
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster steps after."""

    grad_checkpointing: bool = False
    """Keep the inputs of the towers' blocks alone and compute them again on the way back: much less memory, a
    third more time, the same gradients.
    """
    use_bn_sync: bool = False
    """Batch norms normalise by the statistics of all processes' samples (SyncBatchNorm), not of their own."""
    fsdp: bool = False
    """Each process keeps a part of weights, gradients and AdamW's moments (FSDP2), and gathers a block's
    weights while it computes with them: for models too large to be kept whole. Checkpoints are folders that
    all processes write together, and that any number of processes goes on from.
    """

    max_nonfinite: int = DEFAULT_MAX_NONFINITE
    """Steps in a row with a loss or gradient that is not finite, each of them skipped, that end the run."""

    def check_step(self) -> None:
        """Raise UsageError where the flags cannot be, or contradict each other."""
        check_at_least(self, accum=1, max_nonfinite=1)
        if self.compile and self.grad_checkpointing:
            raise UsageError(
                "--compile and --grad-checkpointing: the compiler chooses itself what is computed again; "
                "give one of them"
            )
        if self.compile and self.fsdp:
            raise UsageError(
                "--compile and --fsdp: the compiler takes a model that is whole; give one of them"
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

    def synchronise_batch_norms(self, model: nn.Module, topology: Topology, device: torch.device) -> None:
        """Do with the batch norms what the flags say; UsageError where that is not possible.

        It makes other modules of them: before anything holds on to the ones there are.
        """
        if not self.use_bn_sync or topology.world_size == 1:  # one process has all samples of a batch
            return
        if device.type != "cuda":
            raise UsageError("--use-bn-sync: torch can do that on GPUs only: leave it out on CPUs")
        nn.SyncBatchNorm.convert_sync_batchnorm(model)

    def step_options(self, objective: Objective, device: torch.device) -> StepOptions:
        """What the flags stand for on a device."""
        return StepOptions(
            objective,
            precision=self.precision or ("bf16" if device.type == "cuda" else "fp32"),
            parts=self.accum,
            compiled=self.compile,
            grad_checkpointing=self.grad_checkpointing,
            fsdp=self.fsdp,
            max_nonfinite=self.max_nonfinite,
        )
