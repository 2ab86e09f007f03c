"""Retrieval metrics against brute force, and where they could flatter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.evaluation.ranks import retrieval_ranks, top_matches
from pipeline.evaluation.retrieval_metrics import DirectionMetrics, retrieval_metrics


def features(count: int, seed: int, dimensions: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dimensions, generator=generator), dim=-1)


def grid(count: int, seed: int) -> torch.Tensor:
    """Small whole numbers: their products are exact, whatever the tile, and many of them are equal."""
    return torch.randint(-2, 3, (count, 3), generator=torch.Generator().manual_seed(seed)).float()


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 70), st.integers(0, 10**6))
def test_ranks_equal_a_brute_force_count_whatever_the_tile(asking, answering, tile, seed):
    queries, targets = grid(asking, seed), grid(answering, seed + 1)
    own = torch.randint(0, answering, (asking,), generator=torch.Generator().manual_seed(seed))
    expected = []
    for row, pair in zip((queries @ targets.T).tolist(), own.tolist(), strict=True):
        others = [score for index, score in enumerate(row) if index != pair]
        expected.append(1 + sum(s > row[pair] for s in others) + sum(s == row[pair] for s in others) / 2)
    assert retrieval_ranks(queries, targets, own, tile=tile).tolist() == expected


@pytest.mark.parametrize("tile", [1, 7, 64, 2048])
def test_scores_that_differ_by_rounding_are_ties_and_wider_ones_are_not(tile):
    for gap, expected in ((4e-7, 25.5), (4e-6, 1.0)):
        scores = torch.full((50,), 0.5)
        scores[1:] -= gap
        assert retrieval_ranks(torch.ones(1, 1), scores[:, None], torch.tensor([0]), tile=tile) == expected


def test_without_indices_the_pairs_stand_in_order():
    queries, targets = grid(30, 5), grid(30, 6)
    assert torch.equal(
        retrieval_ranks(queries, targets, tile=8), retrieval_ranks(queries, targets, torch.arange(30))
    )


@pytest.mark.parametrize("broken", ["queries", "targets", "both"])
def test_a_model_that_diverged_ranks_last(broken):
    good, bad = features(40, 7), torch.full((40, 8), torch.nan)
    queries = good if broken == "targets" else bad
    targets = good if broken == "queries" else bad
    metrics = retrieval_metrics(queries, targets)
    assert metrics.image_to_text.mean_rank == metrics.text_to_image.mean_rank == 40
    assert metrics.image_to_text.recall_at_10 == 0


def test_one_broken_target_counts_against_the_queries_of_others():
    targets = features(20, 8)
    targets[3] = torch.nan
    ranks = retrieval_ranks(features(20, 8), targets)
    assert ranks[3] == 20
    assert set(ranks.tolist()) == {2.0, 20.0}


def test_a_collapsed_model_scores_at_chance():
    same = F.normalize(torch.ones(200, 16), dim=-1)
    metrics = retrieval_metrics(same, same)
    assert metrics.image_to_text.mean_rank == 100.5
    assert metrics.image_to_text.recall_at_10 == 0
    assert metrics.image_to_text.mean_rank == DirectionMetrics.by_chance(200).mean_rank


def test_a_perfect_model_ranks_every_pair_first():
    own = features(300, 0, 64)
    metrics = retrieval_metrics(own, own)
    assert (metrics.image_to_text.recall_at_1, metrics.text_to_image.mean_rank) == (1.0, 1.0)


def test_directions_are_not_confused():
    images, texts = torch.eye(3), F.normalize(torch.tensor([[1.0, 0, 0], [1.0, 0.5, 0], [0, 0, 1.0]]), dim=-1)
    metrics = retrieval_metrics(images, texts)
    assert metrics.image_to_text.recall_at_1 == 1.0
    assert metrics.text_to_image.recall_at_1 == pytest.approx(2 / 3)


def test_table_and_dictionary_hold_all_figures_and_chance():
    metrics = retrieval_metrics(features(50, 1), features(50, 2))
    assert len(metrics.to_dict()) == 10
    table = metrics.table()
    assert "chance" in table
    assert f"{10 / 50:.1%}" in table
    assert DirectionMetrics.by_chance(4).recall_at_5 == 1.0


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 8), st.integers(0, 10**6))
def test_top_matches_are_the_best_in_order_whatever_the_tile(answering, tile, count, seed):
    queries, targets = grid(4, seed), grid(answering, seed + 1)
    scores, found = top_matches(queries, targets, count, tile=tile)
    whole = queries @ targets.T
    assert torch.equal(scores, whole.sort(dim=1, descending=True).values[:, :count])
    assert torch.equal(whole.gather(1, found), scores)
    assert all(len(set(row)) == len(row) for row in found.tolist()), "no target twice"
