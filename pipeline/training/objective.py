"""What training minimises: the loss of matching images with captions, and that of masked-token prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
import xxhash

from pipeline.checks import check_share
from pmc_clip import ModelError
from pmc_clip.accumulation import MatchLoss
from pmc_clip.losses import LossWeights, contrastive_loss, siglip_loss
from shards import UsageError

MatchLossName = Literal["contrastive", "siglip"]
DEFAULT_WEIGHTS = "0.5,0.5"


@dataclass(frozen=True)
class Objective:
    """The losses of a run and their weights; without labels in a batch, the matching loss alone."""

    match: MatchLossName = "contrastive"
    weights: LossWeights = field(default_factory=lambda: LossWeights(0.5, 0.5))
    ignore_same_captions: bool = False
    """Whether samples with the same caption are never each other's negatives."""

    def describe(self, *, mlm: bool) -> str:
        """The losses in a few words."""
        if not mlm:
            return self.match
        return f"{self.weights.match:g} × {self.match} + {self.weights.mlm:g} × masked tokens"

    def match_loss(self, samples: np.ndarray, captions: Sequence[str], device: torch.device) -> MatchLoss:
        """The matching loss of this rank's part of a global batch, as a function of what the model gives.

        samples: [B] int64, sample ids: a sample is never its own negative.
        """
        sample_ids = torch.from_numpy(samples).to(device, non_blocking=True)
        same = caption_ids(captions).to(device, non_blocking=True) if self.ignore_same_captions else None

        def compare(
            image_features: torch.Tensor,
            text_features: torch.Tensor,
            logit_scale: torch.Tensor,
            logit_bias: torch.Tensor | None,
        ) -> torch.Tensor:
            if self.match == "contrastive":
                return contrastive_loss(
                    image_features, text_features, logit_scale, sample_ids, caption_ids=same
                )
            assert logit_bias is not None  # `pipeline.training.starting_model` gives such a run's model one
            return siglip_loss(
                image_features, text_features, logit_scale, logit_bias, sample_ids, caption_ids=same
            )

        return compare


@dataclass(frozen=True, kw_only=True)
class ObjectiveFlags:
    """What a run minimises."""

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

    def check_objective(self) -> None:
        """Raise UsageError where the flags cannot be, or contradict each other."""
        check_share(self, "mask_ratio")
        weights = self.objective().weights
        if not self.mlm and (not weights.match or (weights.mlm and self.loss_weights != DEFAULT_WEIGHTS)):
            raise UsageError(
                f"--loss-weights {self.loss_weights}: the second number is of masked-token prediction, which "
                "--mlm trains: give both flags or none"
            )

    def objective(self) -> Objective:
        """What the flags stand for."""
        try:
            weights = LossWeights.parse(self.loss_weights)
        except ModelError as error:
            raise UsageError(f"--loss-weights: {error}") from error
        return Objective(self.loss, weights, self.ignore_same_captions)


def caption_ids(captions: Sequence[str]) -> torch.Tensor:
    """[B] int64: a hash of each caption, the same in every process."""
    hashes = [xxhash.xxh64_intdigest(caption.encode("utf-8", "surrogatepass")) for caption in captions]
    return torch.from_numpy(np.array(hashes, np.uint64).view(np.int64))
