"""Steps whose loss or gradient is no finite number: skipped on all processes alike, counted, and the end of a
run where they do not stop.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from pipeline.run_log import say
from pipeline.topology import Topology
from pmc_clip.accumulation import Losses
from shards import DataError
from shards.storage import write_atomically

DEFAULT_MAX_NONFINITE = 10
_NAMED = 20  # parameters in a diagnosis


@dataclass(frozen=True)
class Diagnosis:
    """What a process knows of a step that was skipped. Numbers that are none are strings: "nan", "inf"."""

    rank: int
    step: int
    samples_seen: int
    keys: list[str]
    losses: dict[str, float | str]
    logit_scale: float | str
    gradient_norm: float | str
    not_finite: dict[str, float | str]
    """Gradient norms of the first parameters, in the model's order, whose gradients are not finite; with
    --fsdp, of the process's part of them.
    """
    not_finite_count: int
    largest: dict[str, float | str]
    """The largest gradient norms of those whose are."""


class NonFiniteSteps:
    """Judges each step between its backward pass and its update.

    On a GPU the verdict of a step is read when the next one has been queued, so that the GPU never waits;
    from the first bad step to the next good one it is read at once.

    parameters: what this process updates of the model, by name, whose gradients it can tell of.
    limit: bad steps in a row that end a run.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        topology: Topology,
        device: torch.device,
        *,
        limit: int = DEFAULT_MAX_NONFINITE,
    ) -> None:
        self._model, self._parameters = model, parameters
        self._topology, self._device, self._limit = topology, device, limit
        # The running statistics of batch norm, which a bad batch spoils in its forward pass.
        self._statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._kept = [torch.empty_like(buffer) for buffer in self._statistics]
        self._unread: tuple[torch.Tensor, torch.cuda.Event] | None = None
        self._skipped = self._told = self._in_a_row = 0  # as far as verdicts were read
        self._diagnosis: Diagnosis | None = None  # of the last bad step, where its verdict was read at once

    def begin_step(self) -> None:
        """Before the forward pass."""
        if self._statistics:
            torch._foreach_copy_(self._kept, self._statistics)

    def judge(
        self,
        losses: Losses,
        gradient_norm: torch.Tensor,
        *,
        step: int,
        samples_seen: int,
        keys: list[str],
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """1.0 where the update must be skipped, on every rank, else 0.0: float32 [], for the optimiser's
        `found_inf`. The statistics of batch norm are then what they were before the step.

        gradient_norm: of all gradients together, the same on every rank.
        counts: bool []; false where a gradient that is not finite is part of the plan, as it is while fp16's
            loss scale is looked for: the step is skipped, but not counted.
        """
        parts = [gradient_norm.float().reshape(()), *(part.float() for part in losses if part is not None)]
        bad = (~torch.stack(parts).isfinite().all()).float()
        if self._topology.world_size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self._undo_statistics(bad)
        counted = bad if counts is None else bad * counts
        self.count()
        if self._device.type == "cpu" or self._in_a_row or self._limit == 1:
            self._count(bool(counted))
            if self._in_a_row:
                self._diagnosis = self._diagnose(losses, gradient_norm, step, samples_seen, keys)
        else:
            copy = torch.empty((), pin_memory=True).copy_(counted, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._unread = copy, event
        return bad

    def go_on(self, skipped: int) -> None:
        """Begin with the count of a run that was resumed."""
        self._skipped = self._told = skipped

    def count(self) -> int:
        """How many steps were skipped so far; waits for the last one's verdict."""
        if self._unread:
            verdict, copied = self._unread
            copied.synchronize()
            self._unread = None
            self._count(bool(verdict))
        return self._skipped

    def end_if_hopeless(self, folder: Path) -> None:
        """Tell of steps that were skipped; after too many in a row, leave what all processes know of the last
        one in `folder`, and raise DataError. Every rank must call it after every step.
        """
        if self._skipped > self._told:
            self._told = self._skipped
            said = f"a step is skipped, its loss or gradient is not finite: {self._skipped} so far"
            say(said, main=self._topology.is_main)
        found = self._diagnosis
        if self._in_a_row < self._limit or found is None:
            return
        everyone = [found] * self._topology.world_size
        if self._topology.world_size > 1:
            dist.all_gather_object(everyone, found)
        path = folder / f"not-finite-step-{found.step:08d}.json"
        if self._topology.is_main:
            content = {"skipped_in_a_row": self._in_a_row, "ranks": [asdict(one) for one in everyone]}
            write_atomically(path, json.dumps(content, indent=1).encode())
        raise DataError(
            f"step {found.step:,}: loss or gradient was not finite in {self._in_a_row} steps in a row; "
            f"{path} has the last one's samples, losses and gradients. The last checkpoint is from before: "
            "go on from there with a lower --lr or --precision fp32, or pass over more with --max-nonfinite"
        )

    def _count(self, bad: bool) -> None:
        self._skipped += bad
        self._in_a_row = self._in_a_row + 1 if bad else 0

    @torch.no_grad()
    def _undo_statistics(self, bad: torch.Tensor) -> None:
        if self._device.type == "cpu":
            if bad and self._statistics:
                torch._foreach_copy_(self._statistics, self._kept)
            return
        for buffer, kept in zip(self._statistics, self._kept, strict=True):
            torch.where(bad.bool(), kept, buffer, out=buffer)

    def _diagnose(
        self, losses: Losses, gradient_norm: torch.Tensor, step: int, samples_seen: int, keys: list[str]
    ) -> Diagnosis:
        norms = {
            name: float(torch.linalg.vector_norm(parameter.grad.float()))
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
        good = sorted(norms.keys() - set(bad), key=lambda name: -norms[name])
        logit_scale = getattr(self._model, "logit_scale", None)
        return Diagnosis(
            rank=self._topology.rank,
            step=step,
            samples_seen=samples_seen,
            keys=list(keys),
            losses={
                name: _number(float(value)) for name, value in losses._asdict().items() if value is not None
            },
            logit_scale=_number(math.nan if logit_scale is None else float(logit_scale.detach().exp())),
            gradient_norm=_number(float(gradient_norm)),
            not_finite={name: _number(norms[name]) for name in bad[:_NAMED]},
            not_finite_count=len(bad),
            largest={name: norms[name] for name in good[:_NAMED]},
        )


def skip_where(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """Let the next step of a fused optimiser change nothing where `bad` is 1.0, without waiting to know.

    It is the way that torch.amp.GradScaler has, which puts its own verdict in this one's place.
    """
    setattr(optimizer, "found_inf", bad)  # noqa: B010 (unknown to the type checker)


def _number(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)
