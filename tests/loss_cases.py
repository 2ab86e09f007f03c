"""What the tests of the losses share: pairs of two linear towers, and each loss written out in full."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

import pmc_clip

BATCH = 16
# Equal ids lie in one rank and across ranks, of two processes as of four.
SAMPLE_IDS = torch.tensor([0, 1, 2, 1, 4, 5, 6, 2, 8, 0, 10, 11, 12, 13, 14, 13])
CAPTION_IDS = torch.tensor([7, 7, 1, 2, 3, 4, 5, 6, 5, 8, 9, 10, 11, 12, 7, 14])
PARAMETERS = ("image_weight", "text_weight", "log_scale", "bias")

Loss = Callable[..., torch.Tensor]


def pairs(seed: int = 0) -> dict[str, torch.Tensor]:
    """What two linear towers read, and their parameters."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(BATCH, 5, generator=draw),
        "y": torch.randn(BATCH, 6, generator=draw),
        "image_weight": torch.randn(5, 4, generator=draw),
        "text_weight": torch.randn(6, 4, generator=draw),
        "log_scale": torch.tensor(1.5),
        "bias": torch.tensor(-2.0),
    }


def loss_and_gradients(loss: Loss, rows: slice) -> dict[str, torch.Tensor]:
    """A loss of the pairs `rows`, called as `loss(images, texts, scale, bias, rows)`, and the gradients."""
    given = pairs()
    weights = {name: given[name].clone().requires_grad_() for name in PARAMETERS}
    images = F.normalize(given["x"][rows] @ weights["image_weight"], dim=-1)
    texts = F.normalize(given["y"][rows] @ weights["text_weight"], dim=-1)
    value = loss(images, texts, weights["log_scale"].exp(), weights["bias"], rows)
    value.backward()
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    return {"loss": value.detach()} | gradients


def contrastive(
    images, texts, scale, bias, rows, *, samples=False, captions=False, **options
) -> torch.Tensor:
    return pmc_clip.contrastive_loss(images, texts, scale, **_ids(rows, samples, captions), **options)


def siglip(images, texts, scale, bias, rows, *, samples=False, captions=False, **options) -> torch.Tensor:
    return pmc_clip.siglip_loss(images, texts, scale, bias, **_ids(rows, samples, captions), **options)


def contrastive_in_full(images, texts, scale, bias, rows, *, samples=False, captions=False) -> torch.Tensor:
    """All logits at once, as the paper has it; what is not a negative is taken out."""
    logits = (scale * images @ texts.T).masked_fill(_left_out(rows, samples, captions), -torch.inf)
    targets = torch.arange(len(images))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def siglip_in_full(images, texts, scale, bias, rows, *, samples=False, captions=False) -> torch.Tensor:
    """All answers at once, as the paper has it; what is not a negative counts nothing."""
    signs = 2 * torch.eye(len(images)) - 1
    answers = -F.logsigmoid(signs * (scale * images @ texts.T + bias))
    return answers.masked_fill(_left_out(rows, samples, captions), 0).sum() / len(images)


def _ids(rows: slice, samples: bool, captions: bool) -> dict[str, torch.Tensor | None]:
    return {
        "sample_ids": SAMPLE_IDS[rows] if samples else None,
        "caption_ids": CAPTION_IDS[rows] if captions else None,
    }


def _left_out(rows: slice, samples: bool, captions: bool) -> torch.Tensor:
    """[B, B] bool: pairs of unlike samples that share an id."""
    alike = torch.zeros(BATCH, BATCH, dtype=torch.bool)
    for used, ids in ((samples, SAMPLE_IDS), (captions, CAPTION_IDS)):
        if used:
            alike |= ids[:, None] == ids
    return (alike & ~torch.eye(BATCH, dtype=torch.bool))[rows, rows]


CASES: dict[str, tuple[Loss, Loss]] = {
    f"{name}, {ids_name}, {chunk_name}": (partial(loss, **ids, **chunk), partial(in_full, **ids))
    for name, loss, in_full in (
        ("contrastive", contrastive, contrastive_in_full),
        ("siglip", siglip, siglip_in_full),
    )
    for ids_name, ids in {
        "no ids": {},
        "sample ids": {"samples": True},
        "caption ids": {"captions": True},
        "both ids": {"samples": True, "captions": True},
    }.items()
    for chunk_name, chunk in {"whole": {}, "chunks of 3": {"chunk": 3}, "one chunk": {"chunk": 99}}.items()
}
"""By name: the loss under test, and the same written out."""
