"""The losses of image and text features over the global batch of all ranks, and how losses are weighted.

    match = contrastive_loss(image_features, text_features, logit_scale, sample_ids)
    total = LossWeights.parse("0.5,0.5").total(match, mlm_loss)

No rank ever holds the global matrix of logits: each holds the rows of its own samples, and of a very large
batch a few of these at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from pmc_clip.errors import ModelError
from pmc_clip.gathering import Ranks

PUBLISHED_WEIGHTS = {"0": (0.5, 0.5), "5": (0.33, 0.66), "9": (1.0, 0.0), "10": (0.0, 1.0)}
"""What the published `--loss-weight` codes stand for: weights of the match and the MLM loss."""

LOGITS_AT_ONCE = 2**26
"""The most logits that a loss holds, unless it is told: 256 MiB, and as much for their gradients."""


@dataclass(frozen=True)
class LossWeights:
    """What the two losses of a training step count for; ModelError where that cannot be trained on."""

    match: float
    """Weight of the loss that compares features (contrastive or sigmoid)."""
    mlm: float
    """Weight of masked-token prediction."""

    def __post_init__(self) -> None:
        said = f"loss weights {self.match:g},{self.mlm:g}"
        if not (math.isfinite(self.match) and math.isfinite(self.mlm)):
            raise ModelError(f"{said}: give two finite numbers")
        if self.match < 0 or self.mlm < 0:
            raise ModelError(f"{said}: a weight below 0 would train the model to be wrong: give 0 or more")
        if self.match == self.mlm == 0:
            raise ModelError(f"{said}: with both 0 nothing is trained: raise one")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "match,mlm" such as "0.5,0.5", or a published code: "0", "5", "9", "10"."""
        if text.strip() in PUBLISHED_WEIGHTS:
            return cls(*PUBLISHED_WEIGHTS[text.strip()])
        try:
            match, mlm = (float(number) for number in text.split(","))
        except ValueError as error:
            raise ModelError(
                f"loss weights '{text}': give two numbers, of the match and the MLM loss, such as 0.5,0.5, "
                f"or a published code: {', '.join(PUBLISHED_WEIGHTS)}"
            ) from error
        return cls(match, mlm)

    def total(self, match: torch.Tensor, mlm: torch.Tensor | None) -> torch.Tensor:
        """The weighted sum; without masked-token prediction the other loss counts in full."""
        return match if mlm is None else self.match * match + self.mlm * mlm


def contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor,
    sample_ids: torch.Tensor | None = None,
    *,
    caption_ids: torch.Tensor | None = None,
    gather: bool = True,
    chunk: int | None = None,
) -> torch.Tensor:
    """Symmetric cross entropy of each pair against the global batch (CLIP, Radford et al. 2021).

    image_features, text_features: [local, D], of length 1; every rank brings equally many.
    logit_scale: scalar, what cosine similarities are multiplied by.
    sample_ids: [local] int64 on the same device. Pairs with equal ids (one sample twice in a global batch)
        are never each other's negatives. None: all differ.
    caption_ids: [local] int64, the same for captions: equal ids, equal captions.
    gather: compare with the pairs of all ranks, where torch.distributed is initialised; else with these.
    chunk: rows of logits to hold at a time, in both directions: [chunk, global] instead of [local, global],
        which are computed a second time on the way back. Equal to rounding. None: all of them, but of a very
        large batch only as many as make `LOGITS_AT_ONCE`.

    Each rank returns the mean over its own pairs (float32 scalar; the local loss of open_clip). The mean of
    the ranks' losses is the loss of the global batch in one process, and the ranks' mean gradients, as
    DistributedDataParallel takes them, are its gradients, `logit_scale` included: what other ranks' losses
    owe to a local feature comes back through the gather as a sum, which that mean divides by the number of
    ranks.
    """
    local = len(image_features)
    # Half precision would round logits of up to 100 by a quarter.
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts, scale = image_features.float(), text_features.float(), logit_scale.float()
        ranks = Ranks(everybody=gather)
        # One collective for the two.
        all_images, all_texts = ranks.gather(torch.cat([images, texts], dim=1)).chunk(2, dim=1)
        alike = _Alike(image_features, ranks, sample_ids, caption_ids)
        total = images.new_zeros(())
        for rows, columns in ((images, all_texts), (texts, all_images)):
            total = total + _over_chunks(partial(_cross_entropy, rows, columns, scale, alike), alike, chunk)
        return total / (2 * local)


def siglip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    sample_ids: torch.Tensor | None = None,
    *,
    caption_ids: torch.Tensor | None = None,
    gather: bool = True,
    chunk: int | None = None,
) -> torch.Tensor:
    """Sigmoid loss: is this the image's text or not, asked of every image and text of the global batch.

    From Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training": the sum over all questions, divided
    by the number of images. Arguments and what the ranks return are as for `contrastive_loss`, and
    logit_bias: scalar, what is added to scaled similarities; about -10 at the start of training, since nearly
        all answers are no.

    Pairs with equal ids are left out. Each rank asks about its own images and all texts, so only texts are
    gathered.
    """
    local = len(image_features)
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = image_features.float(), text_features.float()
        scale, bias = logit_scale.float(), logit_bias.float()
        ranks = Ranks(everybody=gather)
        alike = _Alike(image_features, ranks, sample_ids, caption_ids)
        yes = F.softplus(-(scale * (images * texts).sum(1) + bias)).sum()
        no = _over_chunks(
            partial(_sigmoid_negatives, images, ranks.gather(texts), scale, bias, alike), alike, chunk
        )
        return (yes + no) / local


def _cross_entropy(
    own: torch.Tensor, others: torch.Tensor, scale: torch.Tensor, alike: "_Alike", rows: slice
) -> torch.Tensor:
    """Sum over these rows [local] of the cross entropy of finding the own partner among all [global]."""
    logits = scale * own[rows] @ others.T  # [rows, global]
    not_negative = alike.of(rows)
    alike.partners(not_negative, rows).fill_(False)
    targets = torch.arange(rows.start, rows.stop, device=own.device) + alike.first
    return F.cross_entropy(logits.masked_fill_(not_negative, -torch.inf), targets, reduction="sum")


def _sigmoid_negatives(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    alike: "_Alike",
    rows: slice,
) -> torch.Tensor:
    """Sum over these rows [local] and all texts [global] of -log(1 - sigmoid(logit)), partners left out."""
    logits = scale * images[rows] @ texts.T + bias  # [rows, global]
    not_negative = alike.of(rows)
    alike.partners(not_negative, rows).fill_(True)
    return F.softplus(logits.masked_fill_(not_negative, -torch.inf)).sum()


class _Alike:
    """Which samples of the global batch are those of this rank once more, by any of their ids."""

    def __init__(self, features: torch.Tensor, ranks: Ranks, *ids: torch.Tensor | None):
        self.rows = len(features)
        self.columns = ranks.count * self.rows
        self.first = ranks.own * self.rows
        self._device = features.device
        given = [values for values in ids if values is not None]
        # [kinds of ids, local] and [kinds of ids, global]; one collective for all kinds.
        self._own = torch.stack(given) if given else None
        self._all = ranks.gather(torch.stack(given, dim=1)).T if given else None

    def of(self, rows: slice) -> torch.Tensor:
        """[rows, global] bool, for rows of the local batch."""
        found = torch.zeros(rows.stop - rows.start, self.columns, dtype=torch.bool, device=self._device)
        if self._own is not None and self._all is not None:
            for own, others in zip(self._own, self._all, strict=True):
                found |= own[rows, None] == others
        return found

    def partners(self, matrix: torch.Tensor, rows: slice) -> torch.Tensor:
        """Of a [rows, global] matrix the view [rows] of each row's own place."""
        return matrix.diagonal(self.first + rows.start)


def _over_chunks(
    loss_of_rows: Callable[[slice], torch.Tensor], alike: _Alike, chunk: int | None
) -> torch.Tensor:
    """The sum of a loss over this rank's rows, a chunk of these at a time.

    Each chunk is computed again on the way back, so that no two are in memory at once.
    """
    count = alike.rows
    if chunk is None:
        chunk = max(1, LOGITS_AT_ONCE // max(1, alike.columns))
        if chunk >= count:
            return loss_of_rows(slice(0, count))
    if chunk < 1:
        raise ModelError(f"chunk is {chunk}: give the rows of logits to hold at a time, at least 1")
    return torch.stack(
        [
            checkpoint(
                loss_of_rows,
                slice(start, min(start + chunk, count)),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, count, chunk)
        ]
    ).sum()
