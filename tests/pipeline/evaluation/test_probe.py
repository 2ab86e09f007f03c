"""Linear probe and nearest neighbours on features whose classes are known to be separable, or not."""

import numpy as np
import pytest

from pipeline.evaluation.frozen_features import held_out
from pipeline.evaluation.probe import linear_probe, nearest_neighbours


def drawn(seed, count, classes=4, spread=0.35):
    """Features of length 1 around a direction of each class, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.eye(classes, 16)
    labels = rng.integers(0, classes, count)
    features = centres[labels] + spread * rng.standard_normal((count, 16))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def test_probe_tells_separable_classes_apart_and_says_which_c_it_chose():
    probe = linear_probe(drawn(0, 200), drawn(1, 80), drawn(2, 200)[0], 4)
    assert (probe.scores.argmax(axis=1) == drawn(2, 200)[1]).mean() > 0.9
    assert probe.scores.sum(axis=1) == pytest.approx(1)
    assert probe.c >= 1e-2 / 10**0.5
    assert probe.converged


def test_probe_on_labels_by_lot_stays_near_chance():
    features, _ = drawn(0, 300)
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 4, 300)
    probe = linear_probe(
        (features[:200], noise[:200]), (features[200:250], noise[200:250]), features[250:], 4
    )
    assert (probe.scores.argmax(axis=1) == noise[250:]).mean() < 0.55


def test_neighbours_vote_by_nearness():
    fit = np.array([[1, 0], [0.9, 0.4359], [0, 1], [0.1, 0.995]], np.float32), np.array([0, 0, 2, 2])
    scores = nearest_neighbours(fit, np.array([[1, 0], [0.02, 0.9998]], np.float32), 4, neighbours=3)
    assert scores.argmax(axis=1).tolist() == [0, 2]
    assert (scores[:, [1, 3]] == 0).all()
    assert scores.shape == (2, 4)


def test_more_neighbours_than_samples_are_all_of_them():
    fit = drawn(0, 10, classes=2)
    assert nearest_neighbours(fit, drawn(1, 5, classes=2)[0], 2, neighbours=50).shape == (5, 2)


def test_a_fifth_of_every_class_is_held_out_the_same_each_time():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    held = held_out(labels)
    assert [int(held[labels == label].sum()) for label in range(4)] == [10, 2, 1, 0]
    assert (held == held_out(labels)).all()
