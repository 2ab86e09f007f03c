"""One training step, and the state it changes: model, optimiser, samples seen."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.loader import Batch
from pipeline.schedule import CosineSchedule
from pipeline.topology import Topology
from pmc_clip import PMCCLIP, Tokenizer, contrastive_loss
from pmc_clip.transforms import normalize
from shards.hashing import Purpose, derive

MAX_LOGIT_SCALE = float(np.log(100))  # as CLIP and the published code clamp it


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW's settings."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.2


@dataclass(frozen=True)
class StepLosses:
    """The losses of one step on this rank, as tensors on the device."""

    total: torch.Tensor
    match: torch.Tensor
    mlm: torch.Tensor | None


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, object]]:
    """AdamW's groups as open_clip makes them: weights decay; gains, biases and scalars do not."""
    trained = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
    ]


class Trainer:
    """Trains a model on batches, on one process or, under a process group, on all of them together.

    The randomness of a step (dropout) is seeded from (seed, samples seen, rank) before it, so a run can go on
    from any step without generator states. The same step on the same number of processes gives the same bits.
    """

    def __init__(
        self,
        model: PMCCLIP,
        tokenizer: Tokenizer,
        *,
        schedule: CosineSchedule,
        optimizer: OptimizerOptions,
        topology: Topology,
        device: torch.device,
        bf16: bool,
        seed: int,
    ) -> None:
        self.model = model.to(device).train()
        self.step = 0
        self.samples_seen = 0
        self._schedule, self._topology, self._device, self._bf16, self._seed = (
            schedule,
            topology,
            device,
            bf16,
            seed,
        )
        self._tokenizer = tokenizer
        self.optimizer = torch.optim.AdamW(
            decay_groups(model.named_parameters(), optimizer.weight_decay),
            lr=schedule.peak,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
        )
        self._forward: nn.Module = model
        if topology.world_size > 1:
            self._forward = DistributedDataParallel(
                model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )
            self._settle_buckets()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._schedule.at(self.samples_seen)

    @property
    def logit_scale(self) -> float:
        """The factor on similarities, as the loss uses it."""
        return float(self.model.logit_scale.detach().exp())

    def train_step(self, batch: Batch, global_batch: int) -> StepLosses:
        """Forward, backward and update on this rank's part of a global batch."""
        assert batch.tokens is not None
        torch.manual_seed(
            int(derive(self._seed, self.samples_seen, self._topology.rank, Purpose.DROPOUT)) >> 1
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        losses = self._losses(
            batch.images_on(self._device),
            batch.tokens.to(self._device, non_blocking=True),
            None if batch.labels is None else batch.labels.to(self._device, non_blocking=True),
            torch.from_numpy(batch.numbers).to(self._device, non_blocking=True),
        )
        losses.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        self.step += 1
        self.samples_seen += global_batch
        return losses

    def _losses(
        self, images: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor | None, numbers: torch.Tensor
    ) -> StepLosses:
        with torch.autocast(self._device.type, torch.bfloat16) if self._bf16 else nullcontext():
            output = self._forward(normalize(images), tokens, labels)
        match = contrastive_loss(
            output.image_features.float(), output.text_features.float(), output.logit_scale.float(), numbers
        )
        if labels is None:
            return StepLosses(match, match.detach(), None)
        # The published weighting; --loss-weights belongs to the model package's issue.
        total = 0.5 * match + 0.5 * output.mlm_loss
        return StepLosses(total, match.detach(), output.mlm_loss.detach())

    def _settle_buckets(self) -> None:
        """Let DDP choose its gradient buckets for good, before the first real step.

        DDP regroups them after the first backward pass, and from three ranks on another grouping sums
        gradients in another order. One pass over a made-up batch, whose gradients and statistics are thrown
        away, puts a fresh process and a resumed one into the same state.
        """
        kept = [buffer.clone() for buffer in self.model.buffers()]
        size = self.model.config.vision_cfg.image_size
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=self._device)
        tokens = self._tokenizer(["a figure", "a table"]).to(self._device)
        labels = torch.where(tokens == tokens[0, 1], tokens, 0) if self.model.mlm else None
        self._losses(images, tokens, labels, torch.arange(2, device=self._device)).total.backward()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(value)

    def synchronise_buffers(self) -> None:
        """Give every rank the first one's batch-norm statistics, as the next step would: for evaluation."""
        if self._topology.world_size > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)


def average_over_ranks(values: dict[str, torch.Tensor], topology: Topology) -> dict[str, float]:
    """The mean over ranks of each value, as numbers; every rank must call it with the same names."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if topology.world_size > 1:
        dist.all_reduce(stacked)
        stacked /= topology.world_size
    return dict(zip(values, stacked.tolist(), strict=True))
