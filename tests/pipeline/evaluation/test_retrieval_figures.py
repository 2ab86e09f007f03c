"""Figures, chance and intervals of ranks, against numpy and against drawing at random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.retrieval_figures import FIGURES, RankedQueries, chance, interval

RECALL_AT_5, MEAN, MEDIAN, RECIPROCAL = 1, 3, 4, 5


def alone(ranks: np.ndarray) -> RankedQueries:
    return RankedQueries(ranks, np.arange(len(ranks)))


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30))
def test_figures_are_those_of_numpy(doubled):
    ranks = np.array(doubled) / 2
    expected = [(ranks <= k).mean() for k in (1, 5, 10)]
    expected += [ranks.mean(), np.median(ranks), (1 / ranks).mean()]
    assert alone(ranks).figures() == pytest.approx(expected)


def test_chance_is_what_random_scores_give():
    rng = np.random.default_rng(0)
    relevant = np.array([1, 1, 2, 5])
    ranks = []
    for _ in range(4000):
        for right in relevant:
            order = rng.permutation(30)  # targets 0 to `right` are right ones
            best = order[:right].min()
            ranks.append(1 + int((order[right:] < best).sum()))
    expected = alone(np.array(ranks, float)).figures()
    assert chance(relevant, 30 - relevant) == pytest.approx(expected, rel=0.05, abs=0.01)


def test_chance_among_single_answers_is_known():
    found = dict(zip(FIGURES, chance(np.ones(1, int), np.array([199])), strict=True))
    assert found["recall_at_10"] == pytest.approx(0.05)
    assert (found["mean_rank"], found["median_rank"]) == pytest.approx((100.5, 100.5))
    assert chance(np.ones(1, int), np.array([3]))[RECALL_AT_5] == 1


def test_an_interval_is_the_same_every_time_and_another_with_another_seed():
    ranks = np.random.default_rng(1).integers(1, 200, 300).astype(float)
    assert np.array_equal(alone(ranks).resampled(3), alone(ranks).resampled(3))
    assert not np.array_equal(alone(ranks).resampled(3), alone(ranks).resampled(4))


def test_the_draws_are_pinned():
    """Published intervals must come out again with every version."""
    low, high = interval(alone(np.arange(1.0, 101)).resampled(0))
    assert (low[MEAN], high[MEAN]) == pytest.approx((44.92, 56.5735))


def test_an_interval_is_as_wide_as_theory_says():
    ranks = np.random.default_rng(2).integers(1, 11, 2000).astype(float)
    low, high = interval(alone(ranks).resampled(0))
    error = 1.96 * ranks.std() / np.sqrt(len(ranks))
    assert (low[MEAN], high[MEAN]) == pytest.approx((ranks.mean() - error, ranks.mean() + error), abs=0.02)
    share = (ranks <= 5).mean()
    error = 1.96 * np.sqrt(share * (1 - share) / len(ranks))
    assert (low[RECALL_AT_5], high[RECALL_AT_5]) == pytest.approx((share - error, share + error), abs=0.004)


def test_resampled_figures_are_those_of_the_drawn_queries():
    ranks = np.array([1.0, 2.0, 7.5, 30.0])
    possible = {tuple(np.round([np.mean(d), np.median(d), np.mean(1 / d)], 9)) for d in _draws(ranks)}
    found = {tuple(np.round(row[[MEAN, MEDIAN, RECIPROCAL]], 9)) for row in alone(ranks).resampled(0)}
    assert len(found) > 30
    assert found <= possible


def _draws(ranks):
    places = np.stack(np.meshgrid(*[np.arange(4)] * 4), -1).reshape(-1, 4)
    return [ranks[row] for row in places]


def test_queries_of_a_group_are_drawn_together():
    ranks = np.array([1.0, 1.0, 100.0, 100.0])
    shares = RankedQueries(ranks, np.array([0, 0, 1, 1])).resampled(0)[:, 0]
    assert {0.0, 0.5, 1.0} == set(shares)


def test_many_queries_are_drawn_in_bounded_memory(monkeypatch):
    ranks = np.random.default_rng(3).integers(1, 50, 500).astype(float)
    expected = alone(ranks).resampled(0, 20)
    monkeypatch.setattr("pipeline.evaluation.retrieval_figures._CHUNK_BYTES", 8 * 500 * 3)
    assert alone(ranks).resampled(0, 20) == pytest.approx(expected)
