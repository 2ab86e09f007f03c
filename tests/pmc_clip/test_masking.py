"""Masking: whole words, in the stated proportions, never what is no text, and nothing drawn inside."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pmc_clip

TOKENIZER = pmc_clip.get_tokenizer("tiny")
FIRST, INSIDE = np.flatnonzero(~TOKENIZER.continuation)[5:], np.flatnonzero(TOKENIZER.continuation)


def _random_batch(seed: int, rows: int = 64, length: int = 77) -> tuple[torch.Tensor, np.ndarray]:
    """Captions of random pieces and lengths, with the uniforms to mask them."""
    draw = np.random.default_rng(seed)
    tokens = np.where(
        draw.random((rows, length)) < 0.3,
        draw.choice(INSIDE, (rows, length)),
        draw.choice(FIRST, (rows, length)),
    )
    tokens[draw.random((rows, length)) < 0.05] = 1  # [UNK]
    ends = draw.integers(1, length, rows)
    columns = np.arange(length)
    tokens[columns > ends[:, None]] = TOKENIZER.pad_id
    tokens[np.arange(rows), ends] = TOKENIZER.sep_id
    tokens[:, 0] = TOKENIZER.cls_id
    return torch.from_numpy(tokens), draw.random((rows, length, 3))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ratio=st.floats(0, 1))
def test_properties(seed: int, ratio: float):
    tokens, uniforms = _random_batch(seed, rows=8)
    before = tokens.clone()
    masked, labels = pmc_clip.mask_tokens(tokens, uniforms, TOKENIZER, ratio)
    chosen = labels != 0

    assert torch.equal(tokens, before)
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(masked[~chosen], tokens[~chosen])
    assert not torch.isin(tokens[chosen], torch.tensor(TOKENIZER.special)).any()
    assert not torch.isin(masked[chosen], torch.tensor([0, 2, 3])).any()
    for row in range(
        len(tokens)
    ):  # all pieces of a word share its fate, which its first piece's uniform decides
        fate = False
        for column, token in enumerate(tokens[row].tolist()):
            if token in TOKENIZER.special:
                assert not chosen[row, column]
                continue
            starts = not TOKENIZER.continuation[token] or tokens[row, column - 1] in TOKENIZER.special
            fate = bool(uniforms[row, column, 0] < ratio) if starts else fate
            assert bool(chosen[row, column]) == fate


def test_proportions():
    tokens, uniforms = _random_batch(0, rows=4000)
    masked, labels = pmc_clip.mask_tokens(tokens, uniforms, TOKENIZER)
    chosen = labels != 0
    text = ~torch.isin(tokens, torch.tensor(TOKENIZER.special))
    assert chosen.sum() / text.sum() == pytest.approx(0.15, abs=0.005)
    assert (masked[chosen] == TOKENIZER.mask_id).float().mean() == pytest.approx(0.8, abs=0.01)
    assert (masked[chosen] == labels[chosen]).float().mean() == pytest.approx(0.1, abs=0.01)
    replaced = masked[chosen & (masked != labels) & (masked != TOKENIZER.mask_id)]
    assert replaced.min() >= 5
    assert len(replaced.unique()) > 1000


def test_unknown_words_may_be_masked():
    tokens = torch.tensor([[2, 1, 3, 0]])
    masked, labels = pmc_clip.mask_tokens(tokens, np.zeros((1, 4, 3)), TOKENIZER)
    assert masked.tolist() == [[2, 4, 3, 0]]
    assert labels.tolist() == [[0, 1, 0, 0]]


def test_columns_are_word_action_replacement():
    tokens = torch.tensor([[2, 10, 3]])
    for uniforms, expected in [
        ((0.2, 0.0, 0.0), 10),
        ((0.1, 0.79, 0.0), 4),
        ((0.1, 0.85, 0.0), 5),
        ((0.1, 0.85, np.nextafter(np.float32(1), np.float32(0))), 7999),
        ((0.1, 0.95, 0.0), 10),
    ]:
        draws = np.broadcast_to(np.array(uniforms, dtype=np.float32), (1, 3, 3))
        masked, _ = pmc_clip.mask_tokens(tokens, draws, TOKENIZER)
        assert masked[0, 1] == expected


def test_rows_do_not_depend_on_their_batch():
    tokens, uniforms = _random_batch(1)
    masked, labels = pmc_clip.mask_tokens(tokens, torch.from_numpy(uniforms), TOKENIZER)
    for row in range(len(tokens)):
        one = pmc_clip.mask_tokens(tokens[row : row + 1], uniforms[row : row + 1], TOKENIZER)
        assert torch.equal(one[0][0], masked[row])
        assert torch.equal(one[1][0], labels[row])


def test_padding_further_changes_no_mask():
    tokens, uniforms = _random_batch(2, length=40)
    masked, labels = pmc_clip.mask_tokens(tokens, uniforms, TOKENIZER)
    assert labels.any()
    wide = torch.cat([tokens, torch.zeros(len(tokens), 37, dtype=torch.int64)], dim=1)
    more = np.concatenate([uniforms, np.zeros((len(tokens), 37, 3))], axis=1)  # would choose all of it
    wide_masked, wide_labels = pmc_clip.mask_tokens(wide, more, TOKENIZER)
    assert torch.equal(wide_masked[:, :40], masked)
    assert torch.equal(wide_labels[:, :40], labels)
    assert not wide_masked[:, 40:].any()
    assert not wide_labels[:, 40:].any()


@pytest.mark.parametrize("caption", ["", "[CLS] [SEP] [MASK] [PAD]", "chest " * 2000, "東京 🩻"])
def test_only_words_are_scored_in_hostile_captions_and_lengths_agree(caption):
    tokens = TOKENIZER([caption, "a"])
    draws = np.zeros((*tokens.shape, 3))  # chooses every word
    masked, labels = pmc_clip.mask_tokens(tokens, draws, TOKENIZER)
    text = ~torch.isin(tokens, torch.tensor(TOKENIZER.special))
    assert masked.shape == labels.shape == tokens.shape
    assert torch.equal(labels != 0, text)
    assert torch.equal(masked == TOKENIZER.mask_id, text)
    assert torch.equal(masked[~text], tokens[~text])


def test_uniforms_of_another_batch_are_refused():
    with pytest.raises(pmc_clip.ModelError, match=r"uniforms are \[1, 3, 3\] for tokens \[1, 77\]"):
        pmc_clip.mask_tokens(torch.zeros(1, 77, dtype=torch.int64), np.zeros((1, 3, 3)), TOKENIZER)


def test_a_batch_of_nothing_stays_nothing():
    masked, labels = pmc_clip.mask_tokens(TOKENIZER([]), np.zeros((*TOKENIZER([]).shape, 3)), TOKENIZER)
    assert masked.shape == labels.shape == TOKENIZER([]).shape
