"""Multi-head self-attention over packed rows, shared by the text tower and the fusion transformer."""

import torch
import torch.nn.functional as F

from pmc_clip.text_layout import Spread


def packed_attention(
    projected: torch.Tensor, spread: Spread, heads: int, dropout: float = 0.0
) -> torch.Tensor:
    """Attention of every row to the rows of its own sample.

    projected: [P, 3 * width], queries, keys and values side by side.
    dropout: the share of attention weights that is dropped.
    Returns [P, width], in the order of the rows.
    """
    width = projected.shape[1] // (3 * heads)  # of a head
    padded = spread.spread(projected).view(spread.batch, spread.length, 3, heads, width)
    query, key, value = padded.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=spread.attend, dropout_p=dropout)
    return spread.pack(attended.transpose(1, 2).flatten(2))
