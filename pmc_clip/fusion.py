"""Fusion transformer: lets the caption's tokens see the image, to tell masked words from the picture.

Pre-norm residual attention blocks as in CLIP's text transformer (Radford et al. 2021), over the text tower's
hidden states followed by two more positions, a learned marker and the image feature (PMC-CLIP, Lin et al.
2023). Parameter names are those of the published checkpoints. It has no positions of its own, so the order of
its rows means nothing.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from pmc_clip.attention import packed_attention
from pmc_clip.text_layout import Spread


class SelfAttention(nn.Module):
    """The parameters of multi-head self-attention, named and drawn as torch's MultiheadAttention's."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: torch.Tensor, spread: Spread) -> torch.Tensor:
        """[P, width] -> [P, width], before `out_proj`."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        return packed_attention(projected, spread, self.heads)


class ResidualAttentionBlock(nn.Module):
    """Attention, then a GELU layer of four times the width; each reads normalised input and adds to it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                [
                    ("c_fc", nn.Linear(width, 4 * width)),
                    ("gelu", nn.GELU()),
                    ("c_proj", nn.Linear(4 * width, width)),
                ]
            )
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, spread: Spread, rows: torch.Tensor | None = None) -> torch.Tensor:
        """[P, width] -> [P, width], or [R, width] where only these `rows` [R] are asked for."""
        attended = self.attn(self.ln_1(x), spread)
        if rows is not None:
            x, attended = x.index_select(0, rows), attended.index_select(0, rows)
        x = x + self.attn.out_proj(attended)
        return x + self.mlp(self.ln_2(x))


class FusionTransformer(nn.Module):
    """The blocks, under the published names `resblocks.N`."""

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads) for _ in range(layers))

    def forward(self, x: torch.Tensor, spread: Spread, rows: torch.Tensor) -> torch.Tensor:
        """[P, width] packed rows of all samples -> [R, width], what becomes of these `rows` [R]."""
        *first, last = self.resblocks
        for block in first:
            x = block(x, spread)
        return last(x, spread, rows)
