"""Which samples are a group, by captions and by columns."""

import numpy as np
import pytest

from pipeline.evaluation.groups import group_by_captions, group_by_column, text_hash
from shards import UsageError


def labels(*samples: list[str]) -> np.ndarray:
    hashes = np.array([text_hash(text) for captions in samples for text in captions], np.uint64)
    return group_by_captions(hashes, np.array([len(captions) for captions in samples]))


def same(found: np.ndarray) -> list[set[int]]:
    return [set(np.flatnonzero(found == label).tolist()) for label in dict.fromkeys(found.tolist())]


def test_equal_captions_are_a_group_whatever_their_white_space():
    assert same(labels(["CT of the chest."], ["MRI"], ["CT  of the\nchest. "])) == [{0, 2}, {1}]


def test_samples_with_several_captions_are_a_group_if_any_is_shared_also_through_others():
    assert same(labels(["a", "b"], ["c"], ["b", "d"], ["d", "e"], ["f", "g"])) == [{0, 2, 3}, {1}, {4}]


def test_labels_do_not_depend_on_the_order_of_samples():
    forth, back = labels(["a", "b"], ["c"], ["b", "d"]), labels(["d", "b"], ["c"], ["b", "a"])
    assert forth.tolist() == back.tolist()[::-1]


def test_a_column_groups_by_value_and_type_and_must_be_there():
    assert same(group_by_column("article", ["PMC1", "PMC2", "PMC1", 1, "1"])) == [{0, 2}, {1}, {3}, {4}]
    with pytest.raises(UsageError, match="--group-key article: 1 of 2 samples have no such column"):
        group_by_column("article", ["PMC1", None])
