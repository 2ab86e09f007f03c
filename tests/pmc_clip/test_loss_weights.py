"""How the two losses of a step are weighted."""

import pytest
import torch

from pmc_clip import LossWeights, ModelError


@pytest.mark.parametrize(
    ("text", "match", "mlm"),
    [
        ("0.5,0.5", 0.5, 0.5),
        (" 1, 0 ", 1, 0),
        ("0,2e-1", 0, 0.2),
        ("0", 0.5, 0.5),
        ("5", 0.33, 0.66),
        ("9", 1, 0),
        ("10", 0, 1),
    ],
)
def test_two_numbers_or_a_published_code_are_read(text, match, mlm):
    assert LossWeights.parse(text) == LossWeights(match, mlm)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "give two numbers"),
        ("1", "a published code: 0, 5, 9, 10"),
        ("0.5", "give two numbers"),
        ("a,b", "give two numbers"),
        ("1,2,3", "give two numbers"),
        ("0.5;0.5", "give two numbers"),
        ("nan,1", "finite"),
        ("1,inf", "finite"),
        ("-1,1", "below 0"),
        ("1,-0.1", "below 0"),
        ("0,0", "nothing is trained"),
    ],
)
def test_weights_that_cannot_be_trained_on_are_refused(text, remedy):
    with pytest.raises(ModelError, match=remedy):
        LossWeights.parse(text)


def test_the_total_is_the_weighted_sum():
    assert LossWeights(0.25, 0.5).total(torch.tensor(4.0), torch.tensor(2.0)) == 2


def test_without_masked_token_prediction_the_match_loss_counts_in_full():
    assert LossWeights(0.25, 0.5).total(torch.tensor(4.0), None) == 4
