"""AdamW as a run asks for it: its flags, its settings, and which parameters decay."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from pipeline.checks import check_at_least
from shards import UsageError

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps in a parameter's shape


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW's settings."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.2
    grad_clip: float | None = None
    """Norm that the gradients are scaled down to where theirs is above it."""
    ema: float | None = None
    """Decay of the average of the weights; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class OptimizerFlags:
    """How AdamW updates the weights."""

    wd: float = 0.2
    """Weight decay of AdamW."""
    beta1: float = 0.9
    """AdamW's first decay rate."""
    beta2: float = 0.999
    """AdamW's second decay rate."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    grad_clip: Annotated[float | None, tyro.conf.arg(aliases=["--grad-clip-norm"])] = None
    """Norm of all gradients together above which they are scaled down to it; without it, they never are."""
    ema: float | None = None
    """Decay of a moving average of the weights, such as 0.9999, kept in float32 and in the checkpoints; it is
    validated in place of the weights. Without it, there is none.
    """

    def check_optimizer(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, wd=0)
        if not 0 < self.eps < float("inf"):
            raise UsageError(f"--eps {self.eps}: it must be above 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: it must be at least 0 and below 1")

        if self.grad_clip is not None and not 0 < self.grad_clip < float("inf"):
            raise UsageError(f"--grad-clip {self.grad_clip}: it must be above 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"--ema {self.ema}: it must lie above 0 and below 1")

    def optimizer_options(self) -> OptimizerOptions:
        """The settings that the flags stand for."""
        return OptimizerOptions(self.beta1, self.beta2, self.eps, self.wd, self.grad_clip, self.ema)


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups as open_clip makes them: weights decay; gains, biases and scalars do not."""
    trained = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
    ]


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], options: OptimizerOptions, lr: float
) -> torch.optim.AdamW:
    """AdamW over those of the parameters that are trained, in one fused update."""
    return torch.optim.AdamW(
        decay_groups(parameters.items(), options.weight_decay),
        lr=lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )
