"""An exponential moving average of a model's weights, kept in float32 beside them (`--ema`).

average = WeightAverage(model.state_dict(), 0.999)
average.update(step)            # after each optimiser step
average.state()                 # the averaged weights
"""

from collections.abc import Mapping

import torch

from shards import UsageError


class WeightAverage:
    """The average of everything a state dict of the model holds; counters are as they stand.

    weights: the tensors themselves, which steps change in place.
    decay: of the average at each step; a young average follows faster, by (1 + step) / (10 + step), so that
        the weights that the run began with are forgotten (as in TensorFlow's moving averages).
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self._average = {
            name: tensor.float().clone() if tensor.is_floating_point() else tensor.clone()
            for name, tensor in self._weights.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights as they are after `step` optimiser steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages, weights = [], []
        for name, tensor in self._weights.items():
            if tensor.is_floating_point():
                averages.append(self._average[name])
                weights.append(tensor.float())
            else:
                self._average[name].copy_(tensor)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps, under the names of the model's weights."""
        return dict(self._average)

    def load(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        if not saved:
            raise UsageError(
                "--ema: the checkpoint was saved without an average of the weights, and one that begins here "
                "would be another run's: leave --ema out, or start a new run with --resume-model-only"
            )
        for name, tensor in self._average.items():
            tensor.copy_(saved[name])
