"""Leaving out what nobody reads changes nothing: the text tower beside transformers' BertModel."""

from dataclasses import replace

import pytest
import torch

from pmc_clip.attention import packed_attention
from pmc_clip.config import BertArchitecture, TextConfig
from pmc_clip.text_layout import Spread, TextLayout
from pmc_clip.text_tower import BertTower
from tests.pmc_clip.plain_model import assert_same_gradients, bert_states

LENGTHS = (9, 2, 5, 12)  # of the captions; the second is [CLS] [SEP], the last fills the row
SHAPE = BertArchitecture(
    num_attention_heads=4,
    intermediate_size=48,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=16,
)
TEXT = TextConfig(context_length=12, vocab_size=40, width=32, layers=3, bert=SHAPE, tokenizer="")


@pytest.fixture
def tokens() -> torch.Tensor:
    """[4, 12]: [CLS] 2, words, [SEP] 3, padding."""
    torch.manual_seed(1)
    rows = torch.zeros(len(LENGTHS), 12, dtype=torch.int64)
    for row, length in zip(rows, LENGTHS, strict=True):
        row[:length] = torch.randint(4, 40, (length,))
        row[0], row[length - 1] = 2, 3
    return rows


def build_tower(text: TextConfig = TEXT, shape: BertArchitecture = SHAPE) -> BertTower:
    """A tower with weights large enough to tell all parts of its arithmetic apart."""
    torch.manual_seed(0)
    tower = BertTower(text, shape)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tower


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_states_and_gradients_are_those_of_transformers(tokens, mask_padding, act):
    shape = replace(SHAPE, hidden_act=act)
    tower = build_tower(shape=shape)
    layout = TextLayout.of(tokens, mask_padding=mask_padding)
    spread = Spread.of(*tokens.shape, layout.kept)
    real = tokens != 0 if mask_padding else torch.ones_like(tokens, dtype=torch.bool)
    reference, _ = bert_states(tower, TEXT, shape, tokens, real if mask_padding else None)

    found, expected = tower(tokens, spread), reference[real]
    assert found.shape == (sum(LENGTHS) if mask_padding else tokens.numel(), 32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    readers = torch.randn(found.shape)
    assert_same_gradients((found * readers).sum(), (expected * readers).sum(), tower)


@pytest.mark.parametrize("mask_padding", [True, False])
def test_asking_for_some_rows_gives_those_of_all(tokens, mask_padding):
    tower = build_tower()
    spread = Spread.of(*tokens.shape, TextLayout.of(tokens, mask_padding=mask_padding).kept)
    rows = torch.tensor([0, 3, 4])
    found, expected = tower(tokens, spread, rows), tower(tokens, spread)[rows]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert_same_gradients(found.square().sum(), expected.square().sum(), tower)


def test_the_pooler_is_that_of_transformers(tokens):
    text = replace(TEXT, pool="pooler")
    tower = build_tower(text)
    spread = Spread.of(*tokens.shape, TextLayout.of(tokens, mask_padding=True).kept)
    starts = torch.tensor([0, *LENGTHS[:-1]]).cumsum(0)
    found = tower.pool(tower(tokens, spread, starts))
    _, expected = bert_states(tower, text, SHAPE, tokens, tokens != 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert_same_gradients(found.square().sum(), expected.square().sum(), tower)


def test_padding_further_changes_nothing_where_padding_is_kept_out(tokens):
    tower = build_tower()
    wide = torch.nn.functional.pad(tokens, (0, 3))
    states = [
        tower(rows, Spread.of(*rows.shape, TextLayout.of(rows, mask_padding=True).kept))
        for rows in (tokens, wide)
    ]
    torch.testing.assert_close(*states, rtol=0, atol=1e-5)


def test_a_layout_counts_scored_tokens_among_those_that_are_read(tokens):
    labels = torch.zeros_like(tokens)
    labels[0, 1], labels[2, 3], labels[3, 10] = 7, 8, 9
    packed = TextLayout.of(tokens, labels, mask_padding=True)
    assert packed.labelled.tolist() == [1, 9 + 2 + 3, 9 + 2 + 5 + 10]
    padded = TextLayout.of(tokens, labels)
    assert padded.kept is None
    assert padded.labelled.tolist() == [1, 2 * 12 + 3, 3 * 12 + 10]
    assert packed.targets.tolist() == padded.targets.tolist() == [7, 8, 9]


def test_packing_undoes_spreading(tokens):
    spread = Spread.of(*tokens.shape, TextLayout.of(tokens, mask_padding=True).kept)
    rows = torch.randn(sum(LENGTHS), 5)
    padded = spread.spread(rows)
    assert torch.equal(spread.pack(padded), rows)
    assert not padded[tokens == 0].any()
    assert torch.equal(spread.attend[:, 0, 0], tokens != 0)


def test_no_row_sees_another_caption(tokens):
    spread = Spread.of(*tokens.shape, TextLayout.of(tokens, mask_padding=True).kept)
    projected = torch.randn(sum(LENGTHS), 3 * 32)
    changed = projected.clone()
    changed[: LENGTHS[0]] += 1
    before, after = (packed_attention(rows, spread, heads=4) for rows in (projected, changed))
    assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])
    assert not torch.isclose(before[: LENGTHS[0]], after[: LENGTHS[0]]).all(1).any()


def test_dropout_is_that_of_transformers_draw_for_draw_where_padding_is_read(tokens):
    shape = replace(SHAPE, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    tower = build_tower(shape=shape)
    torch.manual_seed(5)
    found = tower(tokens, Spread.of(*tokens.shape, None))
    expected, _ = bert_states(tower, TEXT, shape, tokens, seed=5)
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_alone_and_follows_the_seed(tokens, which):
    shape = replace(SHAPE, **{which: 0.5})
    tower = build_tower(shape=shape)
    spread = Spread.of(*tokens.shape, TextLayout.of(tokens, mask_padding=True).kept)

    def states(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return tower(tokens, spread)

    assert torch.equal(states(1), states(1))
    assert not torch.allclose(states(1), states(2), atol=0.1)
    tower.eval()
    assert torch.equal(states(1), states(2))
