"""Features of a data set: every sample's image and caption through the model, once, on all ranks together."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from pipeline.loader import Loader
from pipeline.model_input import batch_parts
from pmc_clip import PMCCLIP


@dataclass(frozen=True)
class Features:
    """L2-normalised features of samples, in manifest order."""

    image: torch.Tensor  # [N, D] float32
    text: torch.Tensor  # [N, D] float32
    numbers: np.ndarray  # [N] int64, sample ids


@torch.no_grad()
def compute_features(model: PMCCLIP, loader: Loader, device: torch.device) -> Features:
    """Run an evaluation loader's batches through the model, and gather what all ranks computed, on every
    rank.

    The model is put into evaluation mode for the while; nothing else of it changes.
    """
    training = model.training
    model.eval()
    images, texts, numbers = [torch.empty(0)], [torch.empty(0)], []
    for batch in loader:
        (part,) = batch_parts(batch, device, mask_padding=model.config.text_cfg.mask_padding)
        images.append(model.encode_image(part.images, normalize=True).float().cpu())
        texts.append(model.encode_text(part.tokens, normalize=True, layout=part.layout).float().cpu())
        numbers.append(batch.numbers)
    model.train(training)
    own = (
        torch.cat(images[1:] or images),
        torch.cat(texts[1:] or texts),
        np.concatenate(numbers or [np.empty(0, int)]),
    )
    parts = [own]
    if dist.is_initialized() and dist.get_world_size() > 1:
        parts = [own] * dist.get_world_size()
        dist.all_gather_object(parts, own)
    parts = [part for part in parts if len(part[2])]
    image, text = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return Features(image, text, np.concatenate([part[2] for part in parts]))
