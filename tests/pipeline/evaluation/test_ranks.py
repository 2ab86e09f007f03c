"""Ranks against brute force and scikit-learn, and where they could flatter."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score
from torch.nn import functional as F

from pipeline.evaluation.ranks import Ranks


def features(count: int, seed: int, dimensions: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dimensions, generator=generator), dim=-1)


def whole(count: int, seed: int) -> torch.Tensor:
    """Small whole numbers: their products are exact, whatever the tile, and many of them are equal."""
    return torch.randint(-2, 3, (count, 3), generator=torch.Generator().manual_seed(seed)).float()


def brute_force(row: list[float], right: set[int], targets: set[int]) -> tuple[int, int]:
    """Among the targets: those better than the best right one, and the others equal to it."""
    best = max(row[target] for target in right)
    wrong = [row[target] for target in targets - right]
    return sum(score > best for score in wrong), sum(score == best for score in wrong)


def check(ranks: Ranks, places: np.ndarray, expected: list[tuple[int, int]]) -> None:
    """places: the query at each place."""
    assert [(int(g), int(e)) for g, e in zip(ranks.greater, ranks.equal, strict=True)] == [
        expected[query] for query in places
    ]


@given(st.data(), st.integers(1, 25), st.integers(1, 30), st.integers(0, 10**6))
def test_ranks_equal_a_brute_force_count_strictly_and_by_groups(rank_features, data, samples, tile, seed):
    counts = np.array(data.draw(st.lists(st.integers(1, 3), min_size=samples, max_size=samples)))
    if data.draw(st.booleans()):
        counts[:] = 1
    labels = np.array(data.draw(st.lists(st.integers(0, 8), min_size=samples, max_size=samples)), np.uint64)
    image, text = whole(samples, seed), whole(int(counts.sum()), seed + 1)
    ranks, pairing = rank_features(image, text, labels, counts, tile=tile)
    scores = (image @ text.T).tolist()
    columns = [list(column) for column in zip(*scores, strict=True)]
    first = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(samples), counts)
    firsts, images, texts = set(first.tolist()), set(range(samples)), set(range(len(owner)))
    by_label = [{n for n in images if labels[n] == label} for label in labels]
    captions = [{t for t in texts if labels[owner[t]] == label} for label in labels]
    check(
        ranks.image_to_text,
        pairing.image_order,
        [brute_force(scores[n], {int(first[n])}, firsts) for n in range(samples)],
    )
    check(
        ranks.text_to_image,
        pairing.image_order,
        [brute_force(columns[first[n]], {n}, images) for n in range(samples)],
    )
    check(
        ranks.group_image_to_text,
        pairing.image_order,
        [brute_force(scores[n], captions[n], texts) for n in range(samples)],
    )
    check(
        ranks.group_text_to_image,
        pairing.text_order,
        [brute_force(columns[t], by_label[owner[t]], images) for t in range(len(owner))],
    )
    assert ranks.own_score.tolist() == [scores[n][first[n]] for n in pairing.image_order]


def test_figures_are_those_of_scikit_learn(rank_features):
    image, text = features(60, 1), features(60, 2)
    ranks, _ = rank_features(image, text, tile=16)
    scores = (image @ text.T).numpy()
    for direction, matrix in ((ranks.image_to_text, scores), (ranks.text_to_image, scores.T)):
        for k in (1, 5, 10):
            expected = top_k_accuracy_score(np.arange(60), matrix, k=k)
            assert (direction.expected <= k).mean() == pytest.approx(expected)
        reciprocal = label_ranking_average_precision_score(np.eye(60), matrix)
        assert (1 / direction.expected).mean() == pytest.approx(reciprocal)


@pytest.mark.parametrize("tile", [7, 64])
def test_scores_that_differ_by_rounding_are_ties_and_wider_ones_are_not(rank_features, tile):
    for gap, expected in ((4e-7, 25.5), (4e-6, 1.0)):
        scores = torch.full((50,), 0.5)
        scores[1:] -= gap
        ranks, _ = rank_features(torch.ones(50, 1), scores[:, None], tile=tile)
        assert ranks.image_to_text.expected[0] == expected


def test_bounds_decide_ties_for_and_against_the_query(rank_features):
    ranks, _ = rank_features(torch.ones(4, 1), torch.tensor([[2.0], [1.0], [1.0], [1.0]]))
    own = ranks.image_to_text
    assert own.optimistic.tolist() == [1, 2, 2, 2]
    assert own.expected.tolist() == [1, 3, 3, 3]
    assert own.pessimistic.tolist() == [1, 4, 4, 4]


def test_a_collapsed_model_scores_at_chance(rank_features):
    same = F.normalize(torch.ones(200, 16), dim=-1)
    ranks, _ = rank_features(same, same, tile=64)
    assert set(ranks.image_to_text.expected) == {100.5}
    assert set(ranks.group_text_to_image.expected) == {100.5}


@pytest.mark.parametrize("broken", ["images", "texts", "both"])
def test_a_model_that_diverged_ranks_last(rank_features, broken):
    good, bad = features(40, 7), torch.full((40, 8), torch.nan)
    image = good if broken == "texts" else bad
    text = good if broken == "images" else bad
    labels = np.array([0, 0, *range(1, 39)], np.uint64)
    ranks, _ = rank_features(image, text, labels, tile=16)
    for direction in (ranks.image_to_text, ranks.text_to_image):
        assert set(direction.pessimistic) == set(direction.optimistic) == {40.0}
    assert set(ranks.group_image_to_text.expected) == {
        39.0,
        40.0,
    }


def test_one_broken_target_counts_against_the_queries_of_others(rank_features):
    text = features(20, 8)
    text[3] = torch.nan
    ranks, _ = rank_features(features(20, 8), text)
    assert ranks.image_to_text.expected[3] == 20
    assert set(ranks.image_to_text.expected.tolist()) == {2.0, 20.0}


def test_directions_are_not_confused(rank_features):
    texts = F.normalize(torch.tensor([[1.0, 0, 0], [1.0, 0.5, 0], [0, 0, 1.0]]), dim=-1)
    ranks, _ = rank_features(torch.eye(3), texts)
    assert ranks.image_to_text.expected.tolist() == [1, 1, 1]
    assert sorted(ranks.text_to_image.expected.tolist()) == [1, 1, 2]
