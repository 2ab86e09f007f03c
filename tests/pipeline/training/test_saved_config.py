"""A run's config.json starts the same run, and flags override it."""

import json
from dataclasses import asdict

import pytest

from pipeline.training.config import TrainConfig
from pipeline.training.saved_config import read_flags, saved_flags
from shards import UsageError

CONFIG = TrainConfig(
    train_data=("a", "b=0.5"), mlm=True, lr=1, epochs=3, samples=None, columns=("licence",), precision="bf16"
)


def write(tmp_path, **changes: object):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(CONFIG) | {"run": {"step_samples": 64}} | changes))
    return path


def test_what_was_saved_comes_back(tmp_path):
    path = write(tmp_path)
    assert read_flags(path) == CONFIG
    assert saved_flags(["--lr", "3", f"--config={path}"]) == saved_flags(["--config", str(path)]) == CONFIG
    assert saved_flags(["--lr", "3"]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batchsize": 3}, "there is no flag --batchsize: take it out"),
        ({"epochs": "three"}, "epochs is 'three', which --epochs cannot be"),
        ({"precision": "int8"}, "precision is 'int8', which --precision cannot be"),
        ({"mlm": 1}, "mlm is 1, which --mlm cannot be"),
        ({"train_data": "a"}, "train_data is 'a'"),
    ],
)
def test_what_is_no_flag_or_no_value_of_it_is_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        read_flags(write(tmp_path, **changes))


def test_what_is_no_config_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        read_flags(tmp_path / "nothing.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UsageError, match="it holds no flags"):
        read_flags(tmp_path / "list.json")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(UsageError, match="train_data is not among its flags"):
        read_flags(tmp_path / "empty.json")
