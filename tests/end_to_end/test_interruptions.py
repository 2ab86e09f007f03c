"""Training that is asked to end, or of which a process is lost: what was trained is kept, and the same
command goes on from there.
"""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

STEPS = 30


@pytest.fixture
def flags(sample_shards, tmp_path) -> list[object]:
    """A short run of the tiny model on the real sample, in `tmp_path`/runs/run."""
    flags = ["--train-data", sample_shards / "train", "--val-data", sample_shards / "valid"]
    flags += ["--model", "tiny", "--global-batch-size", 24, "--steps", STEPS, "--epochs", 5]
    flags += ["--log-every", 1, "--save-every", 100]
    return [*flags, "--logs", tmp_path / "runs", "--name", "run", "--seed", 1, "--resume", "auto"]


def entries(folder: Path, kind: str) -> list[dict[str, object]]:
    """The whole lines of a run's log."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def wait_for_step(folder: Path, step: int, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 200
    while not any(entry["step"] >= step for entry in entries(folder, "train")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.02)


def checkpoint_steps(folder: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in (folder / "checkpoints").glob("step-*.pt"))


def test_a_run_asked_to_end_saves_ends_with_75_and_goes_on(start, run, flags, tmp_path):
    folder = tmp_path / "runs" / "run"
    process = start("train", *flags)
    wait_for_step(folder, 3, [process])
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    (saved,) = checkpoint_steps(folder)
    assert 3 <= saved < STEPS
    assert f"interrupted: saved after step {saved}; the same command with --resume auto" in said
    assert (folder / "interrupted").exists()
    assert max(entry["step"] for entry in entries(folder, "train")) == saved
    done = run("train", *flags)
    assert done.returncode == 0, done.stderr
    assert f"going on from {folder / 'checkpoints' / f'step-{saved:08d}.pt'}" in done.stderr
    assert not (folder / "interrupted").exists()
    assert checkpoint_steps(folder) == [saved, STEPS]
    assert [entry["step"] for entry in entries(folder, "train")] == list(range(1, STEPS + 1))


def test_a_validation_that_was_cut_short_is_made_up_for(run, flags, tmp_path):
    folder = tmp_path / "runs" / "run"
    few = [*flags, "--steps", 3, "--keep-best", "text_to_image_mean_rank"]
    assert run("train", *few).returncode == 0
    log = folder / "metrics.jsonl"
    whole = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in whole if entry["kind"] != "valid"))
    again = run("train", *few)
    assert again.returncode == 0, again.stderr
    assert entries(folder, "valid") == [entry for entry in whole if entry["kind"] == "valid"]
    assert torch.load(folder / "checkpoints" / "best.pt", weights_only=True)["step"] == 3
    third = run("train", *few)
    assert third.returncode == 0
    assert "validation after" not in third.stderr
