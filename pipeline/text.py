"""From a batch's captions to its token ids and, when asked for, masked tokens with their labels."""

import numpy as np
import torch

from pmc_clip import Tokenizer, mask_tokens
from shards.hashing import Purpose, derive, uniforms


class TextStage:
    """Tokenises the captions of a batch; with `mask_ratio` above 0 also masks them.

    Masking is drawn per sample from (seed, epoch, sample number), so it depends on nothing else: neither on
    the rest of the batch nor on how far that makes the tokeniser pad the caption.
    """

    def __init__(self, tokenizer: Tokenizer, *, seed: int = 0, mask_ratio: float = 0.0) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._mask_ratio = mask_ratio

    def __call__(
        self, captions: list[str], epochs: np.ndarray, numbers: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(token ids int64 [B, T], labels int64 [B, T] with 0 where not scored, or None without masking)."""
        tokens = self._tokenizer(captions)
        if not self._mask_ratio:
            return tokens, None
        # Three numbers for each place in turn, so that a longer row begins with a shorter one's.
        count = 3 * tokens.shape[1]
        drawn = uniforms(derive(self._seed, epochs, numbers, Purpose.MASK), count)
        return mask_tokens(tokens, drawn.reshape(*tokens.shape, 3), self._tokenizer, self._mask_ratio)
