"""launch/*.sbatch and plain srun, on a SLURM cluster of two nodes that are both this machine."""

import json
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
# What this cluster has in place of what the scripts ask for: two nodes of one process, or one of two.
SMALL = ["--gpus-per-node=0", "--cpus-per-task=1", "--output=job.log"]
TWO_NODES = [*SMALL, "--nodes=2", "--ntasks-per-node=1"]
ONE_NODE = [*SMALL, "--nodes=1", "--ntasks-per-node=2"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def submit_training(slurm, sample_shards, training_flags, tmp_path):
    """Submit launch/train.sbatch on two nodes: the number of the job."""

    def submit(launcher: str) -> str:
        variables = {"TRAIN_DATA": str(sample_shards / "train"), "VAL_DATA": "", "LAUNCHER": launcher}
        return slurm.submit(tmp_path, *TWO_NODES, LAUNCH / "train.sbatch", *training_flags, **variables)

    return submit


def wait_for_a_checkpoint(run: Path) -> None:
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / "latest").exists():
        assert time.monotonic() < deadline, (run.parents[1] / "job.log").read_text()
        time.sleep(0.05)


def test_plain_srun_is_one_run_of_all_tasks(
    slurm, sample_shards, training_flags, assert_undisturbed, tmp_path
):
    flags = ["--train-data", sample_shards / "train", "--mlm", *training_flags, "--name", "plain"]
    slurm.command("srun", "--ntasks=2", "python", "-m", "pipeline.train", *flags, folder=tmp_path)
    assert_undisturbed(tmp_path / "runs" / "plain")


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_warned_that_its_time_ends_a_job_saves_and_goes_on_later(
    slurm, submit_training, assert_undisturbed, tmp_path, launcher
):
    run = tmp_path / "runs" / "pmc-clip"
    job = submit_training(launcher)
    wait_for_a_checkpoint(run)
    slurm.command("scancel", "--batch", "--signal=USR1", job)
    assert slurm.wait(job) == ["COMPLETED"], (tmp_path / "job.log").read_text()
    log = (tmp_path / "job.log").read_text()
    assert "interrupted: " in log
    assert log.count("going on from") == 1
    assert_undisturbed(run)


def test_a_job_that_slurm_puts_back_into_the_queue_goes_on_when_its_turn_comes(
    slurm, submit_training, assert_undisturbed, tmp_path
):
    run = tmp_path / "runs" / "pmc-clip"
    job = submit_training("srun")
    wait_for_a_checkpoint(run)
    slurm.command("scontrol", "requeue", job)
    assert slurm.wait(job) == ["COMPLETED"], (tmp_path / "job.log").read_text()
    log = (tmp_path / "job.log").read_text()
    assert "interrupted: " in log
    assert log.count("going on from") == 1
    assert_undisturbed(run)


def test_a_cancelled_job_saves_and_is_not_started_again(slurm, submit_training, tmp_path):
    job = submit_training("srun")
    wait_for_a_checkpoint(tmp_path / "runs" / "pmc-clip")
    slurm.command("scancel", job)
    assert slurm.wait(job) == ["CANCELLED"]
    log = (tmp_path / "job.log").read_text()
    assert "interrupted: " in log
    assert "Restarts=0" in slurm.command("scontrol", "show", "job", job)


def test_an_array_packs_the_bytes_that_one_process_packs(slurm, run, shared, tmp_path):
    table = shared / "pmc_sample" / "train.csv"
    alone = run("shard", "--csv", table, "--out", tmp_path / "alone" / "train", "--samples-per-shard", 40)
    assert alone.returncode == 0, alone.stderr
    options = ["--array=0-2", "--cpus-per-task=2", "--output=task-%a.log"]
    variables = {"TABLE": str(table), "IMAGES": "", "OUT": str(tmp_path / "array" / "train")}
    job = slurm.submit(tmp_path, *options, LAUNCH / "shard.sbatch", "--samples-per-shard", 40, **variables)
    ended = slurm.wait(job)
    assert ended == ["COMPLETED"] * 3, [log.read_text() for log in tmp_path.glob("task-*.log")]
    files = {file.name: file.read_bytes() for file in (tmp_path / "alone" / "train").iterdir()}
    assert len([name for name in files if name.endswith(".tar")]) == 6
    assert {file.name: file.read_bytes() for file in (tmp_path / "array" / "train").iterdir()} == files


def test_an_evaluation_job_finds_what_one_process_finds(slurm, run, sample_shards, tmp_path):
    data = sample_shards / "test"
    flags = ["--train-data", sample_shards / "train", "--model", "tiny", "--steps", 1, "--batch-size", 16]
    trained = run("train", *flags, "--name", "pmc-clip")
    assert trained.returncode == 0, trained.stderr
    checkpoint = "runs/pmc-clip/checkpoints/latest"
    alone = run("evaluate", "--data", data, "--checkpoint", checkpoint, "--out", "alone")
    assert alone.returncode == 0, alone.stderr
    job = slurm.submit(tmp_path, *ONE_NODE, LAUNCH / "evaluate.sbatch", "--out", "job", DATA=str(data))
    assert slurm.wait(job) == ["COMPLETED"], (tmp_path / "job.log").read_text()
    found, expected = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("job", "alone")
    )
    assert found == expected
