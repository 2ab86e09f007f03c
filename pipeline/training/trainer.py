"""One training step, and the state it changes: model, optimiser, samples seen."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline.checkpoint import Checkpoint
from pipeline.loader import Batch
from pipeline.model_input import batch_parts, make_part
from pipeline.topology import Topology
from pipeline.training.averaging import WeightAverage
from pipeline.training.compilation import compile_model, mark_changing_sizes, named_compiler_failures
from pipeline.training.flops import model_flops, peak_tflops
from pipeline.training.gradients import AgreeingScaler, clip_gradients
from pipeline.training.nonfinite import NonFiniteSteps, skip_where
from pipeline.training.optimizer import MOMENTS, OptimizerOptions, make_optimizer
from pipeline.training.outline import outline_of
from pipeline.training.schedule import Schedule
from pipeline.training.sharded_model import ShardedModel
from pipeline.training.step_options import StepOptions
from pipeline.training.whole_model import WholeModel
from pmc_clip import PMCCLIP, Tokenizer
from pmc_clip.accumulation import Losses, MatchLoss, Part, accumulate
from pmc_clip.activation_checkpointing import checkpoint_activations
from shards import UsageError
from shards.hashing import Purpose, derive

MAX_LOGIT_SCALE = float(np.log(100))  # as CLIP and the published code clamp it


class Trainer:
    """Trains a model on batches, on one process or, under a process group, on all of them together.

    The randomness of a step (dropout) is seeded from (seed, samples seen, rank) before it, so a run can go on
    from any step without generator states. The same step on the same number of processes gives the same bits.

    Each rank's masked-token loss is the mean over the labelled positions of its own batch, and the ranks'
    gradients are averaged, as published: a position counts a little more on a rank that has few of them. (The
    matching loss is that of the global batch, to rounding.)
    """

    def __init__(
        self,
        model: PMCCLIP,
        tokenizer: Tokenizer,
        *,
        schedule: Schedule,
        optimizer: OptimizerOptions,
        topology: Topology,
        device: torch.device,
        seed: int,
        global_batch: int,
        options: StepOptions | None = None,
    ) -> None:
        self.model = model.train()
        self.gradient_norm = torch.zeros((), device=device)
        self.step = 0
        self.samples_seen = 0
        self.global_batch = global_batch
        self._tokenizer, self._options = tokenizer, options or StepOptions()
        self._schedule, self._topology, self._device, self._seed = schedule, topology, device, seed
        self._outline = outline_of(model)
        if self._options.grad_checkpointing:
            checkpoint_activations(model)
        shares = self._options.fsdp and topology.world_size > 1
        self._held: WholeModel | ShardedModel
        if shares:
            self._held = ShardedModel(model, self._outline, topology, device)
        else:
            self._held = WholeModel(model, topology, device)
        self._forward = self._held.forward
        self.optimizer = make_optimizer(self._held.parameters, optimizer, schedule.peak)
        self._grad_clip = optimizer.grad_clip
        scaler = AgreeingScaler if shares else torch.amp.GradScaler
        self._scaler = scaler(device.type, enabled=self._options.precision == "fp16")
        self.average = WeightAverage(self._held.tensors, optimizer.ema) if optimizer.ema else None
        if isinstance(self._forward, DistributedDataParallel):
            self._settle_buckets()
        if self._options.compiled:
            compile_model(model)
        self.non_finite = NonFiniteSteps(
            model, self._held.parameters, topology, device, limit=self._options.max_nonfinite
        )

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._schedule.at(self.samples_seen)

    @property
    def logit_parameters(self) -> dict[str, float]:
        """What makes logits of similarities: `logit_scale`, a factor, and `logit_bias`, if there is one."""
        values = {"logit_scale": float(self.model.logit_scale.detach().exp())}
        if self.model.config.init_logit_bias is not None:
            values["logit_bias"] = float(self.model.logit_bias.detach())
        return values

    @property
    def loss_scale(self) -> float | None:
        """What the loss is scaled by, in fp16."""
        return float(self._scaler.get_scale()) if self._scaler.is_enabled() else None

    @property
    def peak_tflops(self) -> float | None:
        """What the device can do at most in this trainer's precision; None where that is not known."""
        if self._device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self._device)
        return peak_tflops(name, half=self._options.precision != "fp32")

    def flops_per_sample(self, batch: Batch) -> float:
        """The floating-point operations that a sample takes, forward and back, counted on a batch.

        What is computed a second time to save memory does not count.
        """
        mask_padding = self.model.config.text_cfg.mask_padding
        (part,) = batch_parts(batch, torch.device("cpu"), mask_padding=mask_padding)
        return model_flops(self._outline, part) / len(batch.images)

    @property
    def spread(self) -> dict[str, torch.Size]:
        """The whole shapes of what each process has a part of, by its place in a checkpoint."""
        return self._held.spread(self._trained_names())

    def _trained_names(self) -> list[str]:
        """The parameters' names in the optimiser's order."""
        names = {parameter: name for name, parameter in self._held.parameters.items()}
        return [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]

    def state(self) -> dict[str, Any]:
        """What the run's checkpoint must keep of this trainer, under the names of Checkpoint's fields: of
        what is `spread`, this process's part.
        """
        return {
            "state_dict": self._held.tensors,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "samples_seen": self.samples_seen,
            "global_batch": self.global_batch,
            "scaler": self._scaler.state_dict(),
            "average": self.average.state() if self.average else {},
            "skipped_steps": self.non_finite.count(),
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. UsageError where its run trained other parameters."""
        self._check_trained(checkpoint.optimizer)
        checkpoint = self._held.own_part(checkpoint, self._trained_names())
        self._held.load(checkpoint.state_dict)
        self.load_optimizer(checkpoint.optimizer)
        if self._scaler.is_enabled() and checkpoint.scaler:
            self._scaler.load_state_dict(checkpoint.scaler)
        if self.average:
            self.average.load(checkpoint.average)
        self.step, self.samples_seen = checkpoint.step, checkpoint.samples_seen
        self.non_finite.go_on(checkpoint.skipped_steps)

    def load_optimizer(self, saved: Mapping[str, Any]) -> None:
        """Go on with an optimiser's moments and counts of steps; its settings stay those of this trainer.

        Raises UsageError where it trained other parameters.
        """
        self._check_trained(saved)
        groups = [
            {**own, "params": theirs["params"]}
            for own, theirs in zip(self.optimizer.param_groups, saved["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        # The fused update runs over memory, so what belongs to a parameter must lie as the parameter does.
        for parameter, state in self.optimizer.state.items():
            for name in MOMENTS:
                state[name] = torch.empty_like(parameter).copy_(state[name])

    def _check_trained(self, saved: Mapping[str, Any]) -> None:
        counts = [
            [len(group["params"]) for group in groups]
            for groups in (saved["param_groups"], self.optimizer.param_groups)
        ]
        if counts[0] != counts[1]:
            raise UsageError(
                f"the checkpoint's run trained {sum(counts[0])} parameters, this one would train "
                f"{sum(counts[1])}: give the --lock-image and --lock-text that it had, or start a new run "
                "from its weights with --pretrained"
            )

    def train_step(self, batch: Batch) -> Losses:
        """Forward, backward and update on this rank's part of a global batch; the rank's losses, detached."""
        torch.manual_seed(
            int(derive(self._seed, self.samples_seen, self._topology.rank, Purpose.DROPOUT)) >> 1
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._held.begin_step()
        self.non_finite.begin_step()
        losses = self._compute_gradients(batch)
        self._held.finish_backward()
        self._scaler.unscale_(self.optimizer)
        self.gradient_norm = self._held.gradient_norm()
        skip_where(self.optimizer, self._judge(losses, batch))
        if self._grad_clip is not None:
            clip_gradients(self._held.parameters.values(), self.gradient_norm, self._grad_clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        self.step += 1
        if self.average:
            self.average.update(self.step)
        self.samples_seen += self.global_batch
        return losses

    def _judge(self, losses: Losses, batch: Batch) -> torch.Tensor:
        """1.0 where this step's update must be skipped, else 0.0."""
        # fp16 finds its loss scale by trying: what is too large then is no trouble of the run's.
        smallest_scale = self._scaler.scale(torch.ones((), device=self._device)) <= 1
        return self.non_finite.judge(
            losses,
            self.gradient_norm,
            step=self.step + 1,
            samples_seen=self.samples_seen,
            keys=batch.keys,
            counts=smallest_scale,
        )

    def _compute_gradients(self, batch: Batch) -> Losses:
        objective, count = self._options.objective, self._options.parts
        mask_padding = self.model.config.text_cfg.mask_padding
        parts = batch_parts(batch, self._device, mask_padding=mask_padding, count=count)
        match_loss = objective.match_loss(batch.numbers, batch.captions, self._device)
        if self._options.compiled:
            for part in parts:
                mark_changing_sizes(part)
        with named_compiler_failures() if self._options.compiled else nullcontext():
            if len(parts) == 1:
                return self._backward(parts[0], match_loss)
            return accumulate(
                self._forward,
                parts,
                match_loss,
                objective.weights,
                autocast=self._autocast,
                scale=self._scaler.scale,
            )

    def _backward(self, part: Part, match_loss: MatchLoss) -> Losses:
        """Gradients of a batch in one piece."""
        with self._autocast():
            output = self._forward(part.images, part.tokens, layout=part.layout)
        match = match_loss(output.image_features, output.text_features, output.logit_scale, output.logit_bias)
        total = self._options.objective.weights.total(match, output.mlm_loss)
        self._scaler.scale(total).backward()
        mlm = None if output.mlm_loss is None else output.mlm_loss.detach()
        return Losses(total.detach(), match.detach(), mlm)

    def _autocast(self) -> AbstractContextManager[object]:
        lowered = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._options.precision)
        return torch.autocast(self._device.type, lowered) if lowered else nullcontext()

    def _settle_buckets(self) -> None:
        """Let DDP choose its gradient buckets for good, before the first real step.

        DDP regroups them once, and from three ranks on another grouping sums gradients in another order. Two
        passes over a made-up batch, whose gradients and statistics are thrown away, put a fresh process and a
        resumed one into the same state: in the first, DDP learns what a static graph uses, in the second, in
        which order the gradients come.
        """
        kept = [buffer.clone() for buffer in self.model.buffers()]
        config, captions = self.model.config, ["a figure", "a table"]
        size = config.vision_cfg.image_size
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=self._device)
        tokens = self._tokenizer(captions)
        labels = torch.where(tokens == tokens[0, 1], tokens, 0) if self.model.mlm else None
        part = make_part(images, tokens, labels, self._device, mask_padding=config.text_cfg.mask_padding)
        for _ in range(2):
            self._backward(part, self._options.objective.match_loss(np.arange(2), captions, self._device))
            self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(value)

    def ready_for_evaluation(self, *, averaged: bool) -> AbstractContextManager[PMCCLIP]:
        """Within, the model, the same on every rank; with the average of its weights where that is asked."""
        return self._held.evaluated(self.average.state() if averaged and self.average else None)


def average_over_ranks(values: dict[str, torch.Tensor], topology: Topology) -> dict[str, float]:
    """The mean over ranks of each value, as numbers; every rank must call it with the same names."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if topology.world_size > 1:
        dist.all_reduce(stacked)
        stacked /= topology.world_size
    return dict(zip(values, stacked.tolist(), strict=True))
