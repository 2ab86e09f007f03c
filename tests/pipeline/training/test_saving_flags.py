"""Flags of saving and ending: what they stand for, and what is refused."""

import pytest

from pipeline.checkpointing.retention import Retention
from pipeline.training.config import TrainConfig
from shards import UsageError


def config(**flags: object) -> TrainConfig:
    return TrainConfig(train_data=("shards/train",), **flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"keep_last": -1}, "--keep-last -1: it must be at least 0"),
        ({"keep_every": 0}, "--keep-every 0: it must be at least 1"),
        ({"save_most_recent": True, "keep_last": 5}, "--save-most-recent contradicts --keep-last 5"),
        ({"keep_best": "accuracy"}, "no such metric; there are image_to_text_recall_at_1, "),
        ({"keep_best": "image_to_text_recall_at_1"}, "give --val-data, which it is measured on"),
        ({"max_nonfinite": 0}, "--max-nonfinite 0: it must be at least 1"),
        ({"timeout": 0.5}, "--timeout 0.5: it must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        config(**flags).check()


@pytest.mark.parametrize(
    ("flags", "retention"),
    [
        ({}, Retention(keep_last=3)),
        ({"save_most_recent": True}, Retention(keep_last=1)),
        ({"keep_last": 0}, Retention(keep_last=0)),
        ({"keep_last": 2, "keep_every": 5}, Retention(keep_last=2, keep_every=5000)),
    ],
)
def test_which_checkpoints_stay(flags, retention):
    assert config(**flags).retention(epoch=1000) == retention


def test_logs_at_an_address_lie_in_runs_on_this_machine():
    far, near = config(logs="s3://bucket/all", name="one"), config(logs="all", name="one")
    assert str(far.run_folder("tiny", "train")) == "runs/s3/bucket/all/one"
    assert far.run_address(far.run_folder("tiny", "train")) == "s3://bucket/all/one"
    assert near.run_address(near.run_folder("tiny", "train")) == "all/one"
