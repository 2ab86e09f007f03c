"""`--average`: the commands that use a run's weights take the average that it keeps beside them."""

import json
from pathlib import Path

import pytest
import torch

import pmc_clip
from tests.checkpoints import make_model, write_checkpoint
from tests.figures import write_figures


@pytest.fixture
def latest(tmp_path) -> Path:
    """The `latest` of a run with --ema."""
    return write_checkpoint(tmp_path / "runs" / "a" / "checkpoints", average=True)


def test_the_average_is_exported_where_it_is_asked_for(run, latest, tmp_path):
    for seed, flags in ((0, []), (1, ["--average"])):
        done = run("export", "--checkpoint", latest, "--out", f"out-{seed}", *flags)
        assert done.returncode == 0, done.stderr
        found = pmc_clip.create_model_and_transforms(pretrained=tmp_path / f"out-{seed}")[0].state_dict()
        expected = make_model(seed).state_dict()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_the_average_is_evaluated_as_it_is_exported(run, latest, tmp_path):
    data = write_figures(tmp_path / "data", 24)
    assert run("export", "--checkpoint", latest, "--out", "exported", "--average").returncode == 0
    found = {}
    for name, flags in {
        "average": ["--checkpoint", latest, "--average"],
        "exported": ["--checkpoint", "exported"],
        "weights": ["--checkpoint", latest],
    }.items():
        done = run("evaluate", "--data", data, "--out", name, *flags)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]
    assert found["average"] == found["exported"] != found["weights"]


@pytest.mark.parametrize("command", ["export", "evaluate", "embed"])
def test_a_run_without_an_average_is_refused(run, tmp_path, command):
    latest = write_checkpoint(tmp_path / "runs" / "b" / "checkpoints")
    data = [] if command == "export" else ["--data", write_figures(tmp_path / "data", 8)]
    done = run(command, "--checkpoint", latest, "--out", "out", "--average", *data)
    assert done.returncode == 2
    assert "without --ema and holds no average" in done.stderr
