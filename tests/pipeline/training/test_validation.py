"""Validation while a run trains: it changes nothing of the run, on one process and on two."""

import json

import pytest
import torch

from tests.figures import write_figures


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_weights_are_the_same_with_and_without_validation(run, tmp_path, processes):
    train, valid = write_figures(tmp_path / "t", 32), write_figures(tmp_path / "v", 13, captions=2)
    flags = ["--train-data", train, "--model", "tiny", "--mlm", "--global-batch-size", 16, "--epochs", 3]
    done = run("train", *flags, "--name", "alone", processes=processes)
    assert done.returncode == 0, done.stderr
    done = run("train", *flags, "--name", "validated", "--val-data", valid, processes=processes)
    assert done.returncode == 0, done.stderr
    saved = [
        torch.load(tmp_path / f"runs/{name}/checkpoints/step-00000006.pt", weights_only=True)
        for name in ("alone", "validated")
    ]
    for part in ("state_dict", "optimizer"):
        assert _equal(saved[0][part], saved[1][part]), part
    log = (tmp_path / "runs/validated/metrics.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in log.splitlines()]
    validations = [entry for entry in entries if entry["kind"] == "valid"]
    assert [entry["step"] for entry in validations] == [2, 4, 6]
    named = {"image_to_text_recall_at_10", "group_text_to_image_mean_rank", "mlm_loss", "mlm_accuracy"}
    assert named <= validations[0].keys()


def _equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other
