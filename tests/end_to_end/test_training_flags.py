"""Training as users of the published trainer and of earlier runs start it; lengths keep their meaning."""

import json
from pathlib import Path

import pytest

from pipeline.open_data import open_data
from pipeline.topology import Topology
from tests.figures import write_figures

SAMPLES = 40


@pytest.fixture
def data(tmp_path) -> str:
    return write_figures(tmp_path / "data", SAMPLES)


@pytest.fixture
def table(tmp_path, data) -> Path:
    """The same as a table beside its images."""
    folder = tmp_path / "table"
    folder.mkdir()
    dataset, rows = open_data(data, Topology()), ["image,caption"]
    for number in range(SAMPLES):
        sample = dataset.read_sample(number)
        (folder / f"{number}.jpg").write_bytes(sample.image)
        rows.append(f"{number}.jpg,{sample.caption}")
    (folder / "train.csv").write_text("\n".join(rows))
    return folder / "train.csv"


def entries(run: Path, kind: str = "train") -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def test_the_published_command_trains_from_a_table(run, tmp_path, table):
    """As in the published README, but for the model, the epochs and the batch."""
    words = ["--dataset-type", "csv", "--csv-separator", ",", "--save-frequency", 1]
    words += ["--report-to", "tensorboard", f"--train-data={table}", f"--val-data={table}"]
    words += ["--csv-img-key", "image", "--csv-caption-key", "caption", "--warmup", 2]
    words += ["--batch-size=8", "--lr=1e-4", "--wd=0.1", "--epochs=1", "--workers=1", "--model", "tiny"]
    words += ["--hugging-face", "--mlm", "--crop-scale", 0.5]
    done = run("train", *words, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "--dataset-type csv: nothing to choose" in done.stderr
    assert "--hugging-face: nothing to choose" in done.stderr
    assert entries(tmp_path / "runs" / "tiny-train")[-1]["samples_seen"] == SAMPLES
    assert len(entries(tmp_path / "runs" / "tiny-train", "valid")) == 1


def test_a_run_starts_from_the_config_of_another_and_flags_override_it(run, tmp_path, data):
    words = ["--train-data", data, "--model", "tiny", "--mlm", "--batch-size", 8, "--steps", 2, "--lr", 3e-4]
    assert run("train", *words, "--log-every", 1, "--name", "a").returncode == 0
    saved = tmp_path / "runs" / "a" / "config.json"
    done = run("train", "--config", saved, "--name", "b")
    assert done.returncode == 0, done.stderr
    noisy = {"samples_per_second", "step_seconds", "tflops_per_second", "loader_wait"}
    ours, theirs = (
        [{key: value for key, value in entry.items() if key not in noisy} for entry in entries(folder)]
        for folder in (tmp_path / "runs" / "a", tmp_path / "runs" / "b")
    )
    assert ours == theirs
    done = run("train", "--config", saved, "--name", "c", "--no-mlm", "--steps", 1)
    assert done.returncode == 0, done.stderr
    last = entries(tmp_path / "runs" / "c")
    assert [entry["step"] for entry in last] == [1]
    assert "mlm_loss" not in last[0]


def test_another_batch_size_at_a_resume_keeps_schedule_saving_and_end(run, tmp_path, data):
    """Steps in flags are those of the first batch, of eight samples."""
    words = ["--train-data", data, "--model", "tiny", "--lr", 1e-3, "--warmup", 6, "--scheduler", "const"]
    words += ["--save-every", 4, "--log-every", 2, "--keep-last", 0, "--name", "r", "--save-frequency", 100]
    assert run("train", *words, "--batch-size", 8, "--steps", 4).returncode == 0
    done = run("train", *words, "--batch-size", 16, "--steps", 12, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "r"
    found = entries(folder)
    assert [entry["samples_seen"] for entry in found] == [16, 32, 48, 64, 80, 96]
    # The rate of a step is that where it began: 8 samples before, then 16.
    begun = [8, 24, 32, 48, 64, 80]
    assert [entry["learning_rate"] for entry in found] == pytest.approx(
        [1e-3 * min(1, (seen + 1) / 48) for seen in begun]
    )
    assert {path.name for path in (folder / "checkpoints").glob("step-*")} == {
        "step-00000004.pt",  # 32 samples
        "step-00000006.pt",  # 64
        "step-00000008.pt",  # 96
    }
    assert json.loads((folder / "config.json").read_text())["run"] == {
        "step_samples": 8,
        "warmup_samples": 48,
        "save_every_samples": [32, 4000],
        "log_every_samples": 16,
        "global_batch": 16,
        "world_size": 1,
    }
