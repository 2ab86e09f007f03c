"""Feature rows are the same in memory and in a file, and a full disk is told."""

import errno

import numpy as np
import pytest
import torch

from pipeline.evaluation.feature_rows import FeatureRows
from shards import DataError


@pytest.mark.parametrize("memory", [0, 300, 10**6])
def test_rows_come_back_wherever_they_lie(memory):
    rows = FeatureRows(5, memory)
    expected = torch.randn(47, 5)
    for start in range(0, 47, 10):
        rows.append(expected[start : start + 10])
    assert len(rows) == 47
    assert torch.equal(rows.read(), expected)
    assert torch.equal(rows.read(7, 31), expected[7:31])
    numbers = np.array([46, 0, 3, 3])
    assert torch.equal(rows.take(numbers), expected[numbers])
    assert rows.take(np.empty(0, np.int64)).shape == (0, 5)


def test_no_rows_are_rows():
    assert FeatureRows(3).read().shape == (0, 3)


def test_a_full_disk_names_the_folder_and_the_remedy(monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(DataError, match=r"No space left on device.*TMPDIR"):
        FeatureRows(4, memory=0).append(torch.zeros(2, 4))
