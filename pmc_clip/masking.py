"""Whole-word masking of token ids, as a pure function of uniform numbers.

BERT's recipe (Devlin et al. 2019, in its later whole-word form): 15 % of the words are chosen; of the pieces
of a chosen word 80 % become [MASK], 10 % a random piece, 10 % stay, and all are to be predicted.
"""

import numpy as np
import torch

from pmc_clip.errors import ModelError
from pmc_clip.tokenizer import Tokenizer

CHOOSE_WORD, CHOOSE_ACTION, CHOOSE_REPLACEMENT = 0, 1, 2  # columns of `uniforms`


def mask_tokens(
    tokens: torch.Tensor, uniforms: np.ndarray | torch.Tensor, tokenizer: Tokenizer, ratio: float = 0.15
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask a batch: (masked tokens, labels), both [B, T] int64.

    tokens: [B, T] int64 on the CPU, not changed.
    uniforms: [B, T, 3] in [0, 1): which words (read at a word's first piece), what becomes of a chosen piece,
        and which piece replaces it. All randomness is in here: equal input gives equal output anywhere, and
        what a place draws does not depend on how far its caption is padded.
    labels: the true id of each piece of a chosen word, else 0. [CLS], [SEP] and padding are never chosen.
    """
    ids, draws = np.asarray(tokens), np.asarray(uniforms)
    if draws.shape != (*ids.shape, 3):
        raise ModelError(f"uniforms are {list(draws.shape)} for tokens {list(ids.shape)}: give [B, T, 3]")
    chosen = _pieces_of_chosen_words(ids, draws[..., CHOOSE_WORD], tokenizer, ratio)
    true_ids = ids[chosen]
    action, replacement = draws[chosen, CHOOSE_ACTION], draws[chosen, CHOOSE_REPLACEMENT]
    choices = tokenizer.ordinary_ids
    # A float32 just below 1 may round up to len(choices).
    pick = np.minimum((replacement * len(choices)).astype(np.int64), len(choices) - 1)
    masked, labels = ids.copy(), np.zeros_like(ids)
    masked[chosen] = np.where(
        action < 0.8, tokenizer.mask_id, np.where(action < 0.9, choices[pick], true_ids)
    )
    labels[chosen] = true_ids
    return torch.from_numpy(masked), torch.from_numpy(labels)


def _pieces_of_chosen_words(
    ids: np.ndarray, draws: np.ndarray, tokenizer: Tokenizer, ratio: float
) -> np.ndarray:
    """[B, T] bool: the pieces of those words whose first piece drew less than `ratio`."""
    text = ~tokenizer.is_special[ids]
    starts_word = text.copy()  # also a piece that continues a word, where no text is before it
    starts_word[:, 1:] &= ~(tokenizer.continuation[ids[:, 1:]] & text[:, :-1])
    word_chosen = draws[starts_word] < ratio  # word by word, through all captions
    word = np.cumsum(starts_word) - 1  # [B * T]: the last word that has begun, for text its own
    return text & np.append(word_chosen, False)[word].reshape(ids.shape)
