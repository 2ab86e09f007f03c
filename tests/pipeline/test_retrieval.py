"""Retrieval metrics against brute force, and where they could flatter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.retrieval import DirectionMetrics, retrieval_metrics, retrieval_ranks, top_matches


def features(count: int, seed: int, dimensions: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dimensions, generator=generator), dim=-1)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 10**6), st.booleans())
def test_ranks_equal_a_brute_force_count_whatever_the_tile(count, tile, seed, with_ties):
    queries, targets = features(count, seed), features(count, seed + 1)
    if with_ties:
        targets = targets[torch.randint(0, count, (count,), generator=torch.Generator().manual_seed(seed))]
    expected = []
    scores = queries.double() @ targets.double().T
    for index in range(count):
        others = [float(scores[index, j] - scores[index, index]) for j in range(count) if j != index]
        expected.append(1 + sum(d > 1e-6 for d in others) + 0.5 * sum(abs(d) <= 1e-6 for d in others))
    assert retrieval_ranks(queries, targets, tile).tolist() == expected


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


def test_top_matches_are_the_best_in_order():
    scores, found = top_matches(features(4, 3), features(30, 4), 5)
    whole = features(4, 3) @ features(30, 4).T
    assert torch.equal(scores, whole.sort(dim=1, descending=True).values[:, :5])
    assert torch.equal(whole.gather(1, found), scores)
