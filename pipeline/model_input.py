"""From a loader's batch to what the model reads of it, on the model's device."""

import torch

from pipeline.loader import Batch
from pmc_clip.accumulation import Part
from pmc_clip.text_layout import TextLayout


def batch_parts(batch: Batch, device: torch.device, *, mask_padding: bool, count: int = 1) -> list[Part]:
    """The batch in `count` parts whose sizes differ by one at most; fewer where it has fewer samples.

    mask_padding: whether the model keeps padding out of its text tower, as its config says.
    """
    assert batch.tokens is not None
    count = min(count, len(batch.tokens))
    images = batch.images_on(device).tensor_split(count)
    tokens = batch.tokens.tensor_split(count)
    labels = [None] * count if batch.labels is None else batch.labels.tensor_split(count)
    return [
        make_part(*of_part, device, mask_padding=mask_padding)
        for of_part in zip(images, tokens, labels, strict=True)
    ]


def make_part(
    images: torch.Tensor,
    tokens: torch.Tensor,
    labels: torch.Tensor | None,
    device: torch.device,
    *,
    mask_padding: bool,
) -> Part:
    """What the model reads of samples.

    images: [B, 3, S, S], on the device already.
    tokens, labels: [B, T], still on the CPU: where the tokens lie is found out here, since that takes a wait
        for a GPU.
    """
    return Part(images, *make_text(tokens, labels, device, mask_padding=mask_padding))


def make_text(
    tokens: torch.Tensor, labels: torch.Tensor | None, device: torch.device, *, mask_padding: bool
) -> tuple[torch.Tensor, TextLayout]:
    """What the model reads of captions alone, as for `make_part`."""
    layout = TextLayout.of(tokens, labels, mask_padding=mask_padding)
    places = [None if value is None else _copy(value, device) for value in layout]
    return _copy(tokens, device), TextLayout(*places)


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; to a GPU from pinned memory, so that nothing waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
