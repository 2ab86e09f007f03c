"""Classification figures against scikit-learn and by hand, and the confusion matrix as a picture."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score, top_k_accuracy_score

from pipeline.evaluation.classification import ClassificationMetrics, top_hits
from pipeline.evaluation.confusion import confusion_svg

CLASSES = tuple("abcdefg")


@pytest.fixture
def scored():
    """Scores [200, 7] that know something of their labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 200)
    scores = rng.random((200, 7))
    scores[np.arange(200), labels] += 0.4
    return scores / scores.sum(axis=1, keepdims=True), labels


def test_figures_are_those_of_scikit_learn(scored):
    scores, labels = scored
    metrics = ClassificationMetrics.from_scores(scores, labels, CLASSES)
    assert metrics.top_1 == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert metrics.top_5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    predicted = scores.argmax(axis=1)
    assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics.macro_auc == pytest.approx(
        roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    )
    assert (metrics.confusion == confusion_matrix(labels, predicted)).all()


def test_intervals_hold_the_figures_and_narrow_with_more_samples(scored):
    scores, labels = scored
    few = ClassificationMetrics.from_scores(scores[:50], labels[:50], CLASSES).intervals
    metrics = ClassificationMetrics.from_scores(scores, labels, CLASSES)
    assert metrics.intervals.keys() == {"top_1", "top_5", "balanced_accuracy"}
    for name, (low, high) in metrics.intervals.items():
        assert low < metrics.values()[name] < high
        assert high - low < few[name][1] - few[name][0]
    share = metrics.top_1
    expected = 1.96 * (share * (1 - share) / len(labels)) ** 0.5
    assert metrics.intervals["top_1"][1] - share == pytest.approx(expected, rel=0.25)


def test_collapsed_model_scores_at_chance_whatever_the_most_frequent_class_is():
    labels = np.array([0] * 90 + [1] * 5 + [2] * 5)
    metrics = ClassificationMetrics.from_scores(np.full((100, 3), 0.5), labels, ("a", "b", "c"))
    assert metrics.top_1 == pytest.approx(1 / 3)
    assert metrics.balanced_accuracy == pytest.approx(1 / 3)
    assert metrics.macro_auc == pytest.approx(0.5)


def test_scores_that_are_no_numbers_are_never_right():
    scores = np.full((4, 3), np.nan)
    metrics = ClassificationMetrics.from_scores(scores, np.array([0, 1, 2, 0]), ("a", "b", "c"))
    assert metrics.top_1 == 0
    assert metrics.macro_auc == pytest.approx(0.5)


def test_class_without_samples_is_left_out_of_the_means(scored):
    scores, labels = scored
    wider = np.hstack([scores, np.zeros((200, 1))])
    with_empty = ClassificationMetrics.from_scores(wider, labels, (*CLASSES, "empty"))
    without = ClassificationMetrics.from_scores(scores, labels, CLASSES)
    assert with_empty.balanced_accuracy == without.balanced_accuracy
    assert with_empty.macro_auc == pytest.approx(without.macro_auc)
    assert with_empty.to_dict()["recall"]["empty"] is None


def test_one_class_alone_has_no_auc_and_few_classes_no_top_5():
    metrics = ClassificationMetrics.from_scores(np.array([[0.9, 0.1]] * 3), np.zeros(3, int), ("a", "b"))
    assert metrics.macro_auc is None
    assert metrics.top_5 is None
    assert metrics.values().keys() == {"top_1", "balanced_accuracy"}


def test_equal_scores_share_the_places_that_are_left():
    scores = np.array([[3.0, 1, 1, 1, 0]])
    assert top_hits(scores, np.array([1]), 1) == 0
    assert top_hits(scores, np.array([1]), 2) == pytest.approx(1 / 3)
    assert top_hits(scores, np.array([1]), 4) == 1
    assert top_hits(scores, np.array([4]), 4) == 0


def test_picture_shows_every_count_and_escapes_names():
    picture = confusion_svg(np.array([[7, 1], [0, 3]]), ("<CT>", "MRI & more"))
    drawn = ElementTree.fromstring(picture)
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"7", "1", "3", "<CT>", "MRI & more"} <= set(texts)
    told = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert "<CT> taken for MRI & more: 1 of 8" in told


def test_picture_of_many_classes_stays_within_a_page():
    picture = ElementTree.fromstring(
        confusion_svg(np.eye(200, dtype=int), [f"class {n}" for n in range(200)])
    )
    assert float(picture.get("width")) < 1400
