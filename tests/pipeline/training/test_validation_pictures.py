"""Validation captions with the images that they find."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.data import make_options
from pipeline.evaluation.feature_rows import FeatureRows
from pipeline.evaluation.subject import Subject
from pipeline.open_data import open_data
from pipeline.topology import Topology
from pipeline.training.validation_pictures import EDGE, MATCHES, QUERIES, SIDE, find_pictures
from pmc_clip import create_model, get_tokenizer
from tests.figures import write_figures

GREEN = (0, 150, 60)


def subject_of(address: str) -> Subject:
    torch.manual_seed(0)
    return Subject(
        create_model("tiny").eval(),
        get_tokenizer("tiny"),
        open_data(address, Topology()),
        Topology(),
        torch.device("cpu"),
        make_options(1, None, Topology()),
    )


def tile(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    return picture[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]


def test_each_caption_stands_with_its_image_and_the_best_matches(tmp_path, monkeypatch):
    """A model that tells all pairs apart finds each caption's own image first: there the edge is green."""
    subject = subject_of(write_figures(tmp_path / "data", 10))
    captions, perfect = [f"caption 0 of {number}" for number in range(10)], torch.eye(10)
    known = SimpleNamespace(image=FeatureRows.of(perfect))
    monkeypatch.setattr(Subject, "features", known)
    monkeypatch.setattr(
        Subject, "encode_captions", lambda _, asked: perfect[[captions.index(caption) for caption in asked]]
    )
    found = find_pictures(subject)
    assert found.captions == [captions[number] for number in (0, 3, 6, 9)]
    assert found.picture.shape == (QUERIES * SIDE, (1 + MATCHES) * SIDE, 3)
    for row in range(QUERIES):
        own, best, second = (tile(found.picture, row, column) for column in range(3))
        assert tuple(best[0, 0]) == GREEN != tuple(second[0, 0])
        assert np.array_equal(own[EDGE:-EDGE, EDGE:-EDGE], best[EDGE:-EDGE, EDGE:-EDGE])
        assert not np.array_equal(best, second)
    assert "caption 0 of 3" in found.legend().splitlines()[1]


@pytest.mark.parametrize("count", [1, 3])
def test_a_small_data_set_has_as_many_as_it_has(tmp_path, count):
    found = find_pictures(subject_of(write_figures(tmp_path / "data", count)))
    assert len(found.captions) == count
    assert found.picture.shape == (count * SIDE, (1 + count) * SIDE, 3)
