"""Where a run's figures are shown: TensorBoard and Weights & Biases."""

import importlib.util
import json
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from pipeline.boards import parse_boards
from pipeline.run_log import RunLog
from shards import UsageError

SETTINGS = {"lr": 0.1, "model": "tiny", "mlm": True, "steps": None, "train_data": ("a", "b")}


def read_board(folder) -> EventAccumulator:
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return board.Reload()


def test_after_a_kill_and_a_resume_no_step_is_shown_twice(tmp_path):
    killed = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        killed.write(step, step * 8, {"loss": float(step)}, "train")
    for board in killed._boards:  # what a killed process had written
        board._writer.flush()
    resumed = RunLog(tmp_path, 1)
    for step in (2, 3, 4):
        resumed.write(step, step * 8, {"loss": step * 10.0}, "train")
    resumed.close()
    seen = [(event.step, event.value) for event in read_board(tmp_path).Scalars("train/loss")]
    assert seen == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == seen


def test_settings_stand_beside_the_last_figures_in_the_run_itself(tmp_path):
    """Not in a folder of its own, as SummaryWriter.add_hparams makes it."""
    log = RunLog(tmp_path, 0, settings=SETTINGS)
    log.write(1, 8, {"loss": 3.0}, "train")
    log.write(2, 16, {"recall": 0.5}, "valid")
    log.show(2, "valid/matches", np.full((8, 8, 3), 77, np.uint8), "1. a caption")
    log.close()
    assert [entry.name for entry in (tmp_path / "tensorboard").iterdir() if entry.is_dir()] == []
    board = read_board(tmp_path)
    data = {tag: board.SummaryMetadata(tag) for tag in board.summary_metadata}
    start = plugin_data_pb2.HParamsPluginData.FromString(
        data[metadata.SESSION_START_INFO_TAG].plugin_data.content
    )
    shown = {name: value.ListFields() for name, value in start.session_start_info.hparams.items()}
    assert set(shown) == {"lr", "model", "mlm", "train_data"}
    assert len(board.Images("valid/matches")) == 1


def test_wandb_gets_the_same_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = RunLog(tmp_path / "run", 0, ["wandb"], SETTINGS)
    log.write(1, 8, {"loss": 3.0}, "train", {"verdict": "fine"})
    log.show(1, "valid/matches", np.zeros((8, 8, 3), np.uint8), "1. a caption")
    log.close()
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30  # a process of wandb's own writes the file
    while b"train/loss" not in kept.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"train/loss" in kept.read_bytes()
    assert wandb.run is None
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_boards_that_there_are_not_are_refused(monkeypatch):
    assert parse_boards("") == []
    assert parse_boards("wandb, tensorboard") == ["wandb", "tensorboard"]
    with pytest.raises(UsageError, match="there is no 'mlflow'; give tensorboard or wandb"):
        parse_boards("tensorboard,mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'pmc-clip-stream\[wandb\]'"):
        parse_boards("wandb")
