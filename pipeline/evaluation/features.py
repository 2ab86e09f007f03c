"""Features of a data set: every sample's image and caption through the model, once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.loader import Batch
from pipeline.model_input import batch_parts
from pmc_clip import PMCCLIP


@dataclass(frozen=True)
class Features:
    """L2-normalised features of the samples of this rank, in manifest order, and what belongs to them."""

    image: torch.Tensor  # [n, D] float32
    text: torch.Tensor  # [n, D] float32; [0, D] where captions were left out
    numbers: np.ndarray  # [n] int64, of the samples in the data set
    keys: list[str]
    captions: list[str]
    columns: dict[str, list[Any]]  # by name; None where a sample has none


@torch.no_grad()
def compute_features(
    model: PMCCLIP, batches: Iterable[Batch], device: torch.device, *, captions: bool = True
) -> Features:
    """Run an evaluation loader's batches through the model; what they give stays on this rank, on the CPU.

    captions: compute their features, too.

    The model is put into evaluation mode for the while; nothing else of it changes.
    """
    training = model.training
    model.eval()
    dimensions = model.config.embed_dim
    images, texts = [torch.empty(0, dimensions)], [torch.empty(0, dimensions)]
    numbers, keys, all_captions = [np.empty(0, np.int64)], [], []
    columns: dict[str, list[Any]] = {}
    for batch in batches:
        (part,) = batch_parts(batch, device, mask_padding=model.config.text_cfg.mask_padding)
        images.append(model.encode_image(part.images, normalize=True).float().cpu())
        if captions:
            texts.append(model.encode_text(part.tokens, normalize=True, layout=part.layout).float().cpu())
        numbers.append(batch.numbers)
        keys += batch.keys
        all_captions += batch.captions
        for name, values in batch.columns.items():
            columns.setdefault(name, []).extend(values)
    model.train(training)
    return Features(torch.cat(images), torch.cat(texts), np.concatenate(numbers), keys, all_captions, columns)
