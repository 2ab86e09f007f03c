"""How one training step computes: its flags, and what they stand for."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from pipeline.checks import check_at_least
from pipeline.training.compilation import check_compiler
from pipeline.training.objective import Objective
from shards import UsageError


@dataclass(frozen=True)
class StepOptions:
    """What a step computes, and how."""

    objective: Objective = field(default_factory=Objective)
    bf16: bool = False
    """Whether the model runs in bfloat16 where autocast does; losses are always in float32."""
    parts: int = 1
    """In how many parts a rank computes its batch, one after the other."""
    compiled: bool = False
    """Whether the model's forward and backward pass are compiled."""


@dataclass(frozen=True, kw_only=True)
class StepFlags:
    """How a step computes."""

    precision: Literal["bf16", "fp32"] | None = None
    """Arithmetic of the model; without it, bf16 autocast on a GPU and fp32 on a CPU."""
    accum: int = 1
    """Parts that each process computes its batch in, one after the other, to need less memory; loss and
    gradients stay those of the whole batch (batch-norm statistics are those of the parts).
    """
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster steps after."""

    def check_step(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, accum=1)
        if self.compile:
            check_compiler()

    def check_parts(self, batch: int) -> None:
        """Raise UsageError where a process's batch has fewer samples than parts."""
        if self.accum > batch:
            raise UsageError(
                f"--accum {self.accum}: a process's batch has {batch} samples, and each part needs "
                f"one; give at most {batch}"
            )

    def step_options(self, objective: Objective, device: torch.device) -> StepOptions:
        """What the flags stand for on a device."""
        return StepOptions(
            objective,
            bf16=self.precision == "bf16" or (self.precision is None and device.type == "cuda"),
            parts=self.accum,
            compiled=self.compile,
        )
