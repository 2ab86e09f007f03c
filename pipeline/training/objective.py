"""What training minimises: the loss of matching images with captions, and that of masked-token prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import xxhash

from pmc_clip.accumulation import MatchLoss
from pmc_clip.losses import LossWeights, contrastive_loss, siglip_loss

MatchLossName = Literal["contrastive", "siglip"]


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


def caption_ids(captions: Sequence[str]) -> torch.Tensor:
    """[B] int64: a hash of each caption, the same in every process."""
    hashes = [xxhash.xxh64_intdigest(caption.encode("utf-8", "surrogatepass")) for caption in captions]
    return torch.from_numpy(np.array(hashes, np.uint64).view(np.int64))
