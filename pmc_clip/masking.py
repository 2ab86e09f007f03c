"""Whole-word masking of token ids, as a pure function of uniform numbers.

BERT's recipe (Devlin et al. 2019, in its later whole-word form): 15 % of the words are chosen; of the pieces
of a chosen word 80 % become [MASK], 10 % a random piece, 10 % stay, and all are to be predicted.
"""

import numpy as np
import torch

from pmc_clip.tokenizer import Tokenizer

CHOOSE_WORD, CHOOSE_ACTION, CHOOSE_REPLACEMENT = 0, 1, 2  # columns of `uniforms`


def mask_tokens(
    tokens: torch.Tensor, uniforms: np.ndarray | torch.Tensor, tokenizer: Tokenizer, ratio: float = 0.15
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask a batch: (masked tokens, labels), both [B, T] int64.

    tokens: [B, T] int64 on the CPU, not changed.
    uniforms: [B, T, 3] in [0, 1): which words (read at a word's first piece), what becomes of a chosen piece,
        and which piece replaces it. All randomness is in here: equal input gives equal output anywhere.
    labels: the true id of each piece of a chosen word, else 0. [CLS], [SEP] and padding are never chosen.
    """
    ids, draws = np.asarray(tokens), np.asarray(uniforms)
    text = ~tokenizer.is_special[ids]
    follows_text = np.zeros_like(text)
    follows_text[:, 1:] = text[:, :-1]
    first = text & ~(tokenizer.continuation[ids] & follows_text)
    columns = np.arange(ids.shape[1])
    first_of_word = np.maximum.accumulate(
        np.where(first, columns, 0), axis=1
    )  # [B, T] column of the word's start
    chosen = text & np.take_along_axis(draws[..., CHOOSE_WORD] < ratio, first_of_word, axis=1)

    action = draws[..., CHOOSE_ACTION]
    choices = tokenizer.ordinary_ids
    # A float32 just below 1 may round up to len(choices).
    pick = np.minimum((draws[..., CHOOSE_REPLACEMENT] * len(choices)).astype(np.int64), len(choices) - 1)
    changed = np.where(action < 0.8, tokenizer.mask_id, np.where(action < 0.9, choices[pick], ids))
    return torch.from_numpy(np.where(chosen, changed, ids)), torch.from_numpy(np.where(chosen, ids, 0))
