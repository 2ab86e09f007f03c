"""Our training step with some of its gains and without the others: what benchmarks/train_step.py adds up.

The model has most of them for good. What their absence means is put back here: scores of every position, all
queries of the attention pool, attention written out, all rows of the last layer.
"""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from published_step import AllQueryPool

import pmc_clip.fusion
import pmc_clip.text_tower
from pipeline.training.compilation import compile_model, mark_changing_sizes
from pipeline.training.optimizer import decay_groups
from pmc_clip import PMCCLIP, ModelConfig
from pmc_clip.accumulation import Part
from pmc_clip.fusion import ResidualAttentionBlock
from pmc_clip.text_layout import Spread, TextLayout
from pmc_clip.text_tower import BertLayer

GAINS = {
    "masked": "+ only masked tokens scored",
    "query": "+ one query in the attention pool",
    "channels": "+ channels_last",
    "uint8": "+ uint8 images, normalised on the device",
    "sdpa": "+ scaled-dot-product attention",
    "packed": "+ padding masked and left out (`mask_padding`)",
    "rows": "+ last fusion layer only at masked tokens",
    "fused": "+ fused AdamW",
    "bf16": "+ bf16 autocast",
    "compiled": "+ torch.compile",
}
"""Names, in the order in which they are added, and what the table calls them."""


class ScoresEverywhere(PMCCLIP):
    """Scores the vocabulary at every position, as published."""

    def _masked_token_loss(
        self, hidden: torch.Tensor, image_features: torch.Tensor, spread: Spread, layout: TextLayout
    ) -> torch.Tensor:
        every = torch.arange(len(hidden), device=hidden.device)
        scores = self._fuse(hidden, image_features, spread, every) @ self.mlm_projection
        labels = torch.zeros_like(every).index_copy(0, layout.labelled, layout.targets)
        return F.nll_loss(scores.log_softmax(-1), labels, ignore_index=0)


def attention_written_out(
    projected: torch.Tensor, spread: Spread, heads: int, dropout: float = 0.0
) -> torch.Tensor:
    """`packed_attention` with its scores and weights in memory."""
    padded = spread.spread(projected).view(spread.batch, spread.length, 3, heads, -1)
    query, key, value = padded.permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if spread.attend is not None:
        scores = scores.masked_fill(~spread.attend, -torch.inf)
    weights = F.dropout(scores.softmax(-1), dropout)
    return spread.pack((weights @ value).transpose(1, 2).flatten(2))


def computing_every_row(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A layer's `forward` that computes all rows, whichever are asked for."""

    def every_row(
        layer: torch.nn.Module, x: torch.Tensor, spread: Spread, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        found = forward(layer, x, spread)
        return found if rows is None else found.index_select(0, rows)

    return every_row


def build_ours(config: ModelConfig, gains: frozenset[str]) -> PMCCLIP:
    """Our model with these gains and without the others (in this whole process: some are patched away)."""
    if "sdpa" not in gains:
        pmc_clip.text_tower.packed_attention = attention_written_out
        pmc_clip.fusion.packed_attention = attention_written_out
    if "rows" not in gains:
        for layer in (BertLayer, ResidualAttentionBlock):
            layer.forward = computing_every_row(layer.forward)
    kind = PMCCLIP if "masked" in gains else ScoresEverywhere
    model = kind(config, pretrained_text=False)
    if "query" not in gains:
        vision = config.vision_cfg
        model.visual.attnpool = AllQueryPool(
            vision.image_size // 32, vision.width * 32, vision.heads, config.embed_dim
        )
    return model


class OurStep:
    """Our training step with some of the gains."""

    def __init__(self, config: ModelConfig, gains: frozenset[str], device: torch.device) -> None:
        memory = torch.channels_last if "channels" in gains else torch.contiguous_format
        self.model = build_ours(config, gains).to(device, memory_format=memory).train()
        self.compiled, self.device = "compiled" in gains, device
        if self.compiled:
            compile_model(self.model)
        groups = decay_groups(self.model.named_parameters(), weight_decay=0.2)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, fused="fused" in gains)
        as_published = torch.float16 if device.type == "cuda" else None
        self.precision = torch.bfloat16 if "bf16" in gains else as_published
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)

    def __call__(self, images: torch.Tensor, tokens: torch.Tensor, layout: TextLayout) -> None:
        """images: [B, 3, S, S] on the host, uint8, or float32 and normalised."""
        images = images.to(self.device, non_blocking=True)
        tokens, layout = tokens.to(self.device, non_blocking=True), layout.to(self.device)
        if self.compiled:
            mark_changing_sizes(Part(images, tokens, layout))
        with torch.autocast(self.device.type, self.precision) if self.precision else nullcontext():
            output = self.model(images, tokens, layout=layout)
        match = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
        self.scaler.scale(0.5 * match + 0.5 * output.mlm_loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, float(np.log(100)))
