"""Features of a data set: every sample's image and captions through the model, once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.evaluation.feature_rows import FeatureRows
from pipeline.evaluation.groups import text_hash
from pipeline.loader import Batch
from pipeline.model_input import batch_parts, make_text
from pmc_clip import PMCCLIP, Tokenizer
from pmc_clip.accumulation import Part


@dataclass(frozen=True)
class Features:
    """L2-normalised features of this rank's samples, in manifest order, and what belongs to them.

    They stay on the rank that computed them. A sample has one image and one caption or more; captions stand
    sample after sample. Where captions were left out, the fields about them are empty.
    """

    image: FeatureRows  # [n, D]
    text: FeatureRows  # [m, D]
    captions: np.ndarray  # [n] int64, how many each sample has
    caption_hashes: np.ndarray  # [m] uint64, of their texts
    keys: list[str]  # [n]
    columns: dict[str, list[Any]]  # [n] by name; None where a sample has none


@torch.no_grad()
def compute_features(
    model: PMCCLIP, tokenizer: Tokenizer | None, batches: Iterable[Batch], device: torch.device
) -> Features:
    """Run an evaluation loader's batches through the model.

    tokenizer: of captions beyond a sample's first; None: captions are left out.

    The model is put into evaluation mode for the while; nothing else of it changes.
    """
    training = model.training
    model.eval()
    image, text = FeatureRows(model.config.embed_dim), FeatureRows(model.config.embed_dim)
    counts: list[int] = []
    hashes: list[int] = []
    keys: list[str] = []
    columns: dict[str, list[Any]] = {}
    mask_padding = model.config.text_cfg.mask_padding
    for batch in batches:
        (part,) = batch_parts(batch, device, mask_padding=mask_padding)
        image.append(model.encode_image(part.images, normalize=True))
        if tokenizer:
            text.append(_encode_captions(model, tokenizer, batch, part, device))
            for place, caption in enumerate(batch.captions):
                own = (caption, *batch.more_captions.get(place, ()))
                counts.append(len(own))
                hashes += map(text_hash, own)
        keys += batch.keys
        for name, values in batch.columns.items():
            columns.setdefault(name, []).extend(values)
    model.train(training)
    return Features(image, text, np.array(counts, np.int64), np.array(hashes, np.uint64), keys, columns)


def _encode_captions(
    model: PMCCLIP, tokenizer: Tokenizer, batch: Batch, part: Part, device: torch.device
) -> torch.Tensor:
    """Features of all captions of a batch [m, D], sample after sample."""
    first = model.encode_text(part.tokens, normalize=True, layout=part.layout)
    others = batch.more_captions
    if not others:
        return first
    more, size = [caption for place in sorted(others) for caption in others[place]], len(batch.keys)
    mask_padding = model.config.text_cfg.mask_padding
    encoded = [first]
    for start in range(0, len(more), size):
        tokens = tokenizer(more[start : start + size])
        tokens, layout = make_text(tokens, None, device, mask_padding=mask_padding)
        encoded.append(model.encode_text(tokens, normalize=True, layout=layout))
    return torch.cat(encoded)[_sample_after_sample(batch)]


def _sample_after_sample(batch: Batch) -> torch.Tensor:
    """Where, among all first captions and then all others, each sample's captions stand in turn."""
    places, other = [], len(batch.keys)
    for place in range(len(batch.keys)):
        count = len(batch.more_captions.get(place, ()))
        places += [place, *range(other, other + count)]
        other += count
    return torch.tensor(places)
