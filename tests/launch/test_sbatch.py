"""launch/*.sbatch without a cluster: what they start, and when a job goes back into the queue, with
stand-ins for SLURM's commands.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
JOB = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "12"}
JOB |= {"SLURM_JOB_NODELIST": "gpu[03-04]"}


@pytest.fixture
def programs(tmp_path):
    """Stand-ins: `programs(srun="exit 75")`; each notes its words, one a line, in a file of its name."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def make(**bodies: str) -> None:
        for name, body in bodies.items():
            noting = f'printf "%s\\n" "$@" >> {tmp_path}/{name}.words'
            (folder / name).write_text(f"#!/bin/bash\n{noting}\n{body}\n")
            (folder / name).chmod(0o755)

    make(scontrol='[ "$1" != show ] || printf "gpu03\\ngpu04\\n"', srun="", python="", sleep="")
    return make


@pytest.fixture
def begin(programs, tmp_path):
    """Start a script in `tmp_path` as SLURM would."""

    def start(script: str, *flags: str, **variables: str) -> subprocess.Popen:
        path = f"{tmp_path}/programs:{os.environ['PATH']}"
        command = ["bash", str(LAUNCH / script), *flags]
        return subprocess.Popen(command, cwd=tmp_path, env=JOB | {"PATH": path} | variables)

    return start


def words(folder: Path, program: str) -> list[str]:
    """What a stand-in was called with."""
    file = folder / f"{program}.words"
    return file.read_text().splitlines() if file.exists() else []


def requeued(folder: Path) -> bool:
    return words(folder, "scontrol")[-2:] == ["requeue", "77"]


LEAVE_MARKER = "mkdir -p runs/pmc-clip; touch runs/pmc-clip/interrupted; exit 1"


@pytest.mark.parametrize(
    ("ending", "code", "again"),
    [("exit 75", 75, True), (LEAVE_MARKER, 1, True), ("exit 0", 0, False), ("exit 1", 1, False)],
)
def test_a_training_job_goes_back_into_the_queue_only_when_its_run_says_so(
    programs, begin, tmp_path, ending, code, again
):
    programs(srun=ending)
    assert begin("train.sbatch").wait() == code
    assert requeued(tmp_path) == again


def test_what_an_earlier_interruption_left_puts_no_failing_job_into_the_queue(programs, begin, tmp_path):
    programs(srun=LEAVE_MARKER)
    begin("train.sbatch").wait()
    (tmp_path / "scontrol.words").unlink()
    programs(srun="exit 1")
    assert begin("train.sbatch").wait() == 1
    assert not requeued(tmp_path)


@pytest.mark.parametrize("script", ["train.sbatch", "evaluate.sbatch"])
def test_a_container_and_flags_with_spaces_reach_the_tasks_as_they_were_given(begin, tmp_path, script):
    assert begin(script, "--logs", "my runs", CONTAINER="my image.sif", VAL_DATA="").wait() == 0
    found = words(tmp_path, "srun")
    command = found[found.index("apptainer") :]
    name = script.removesuffix(".sbatch")
    assert command[:7] == ["apptainer", "exec", "--nv", "my image.sif", "python", "-m", f"pipeline.{name}"]
    assert command[-2:] == ["--logs", "my runs"]
    assert "--val-data" not in command
    assert "--cpus-per-task=12" in found


def test_torchrun_is_started_once_a_machine_with_the_cores_of_its_processes(begin, tmp_path):
    assert begin("train.sbatch", LAUNCHER="torchrun").wait() == 0
    found = words(tmp_path, "srun")
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=96"} < set(found)
    settings = {"--nnodes": "2", "--nproc_per_node": "8", "--rdzv_endpoint": "gpu03:10077", "--rdzv_id": "77"}
    assert {flag: found[found.index(flag) + 1] for flag in settings} == settings


def test_a_sharding_task_whose_time_ends_finishes_its_shards_and_goes_back_into_the_queue(
    programs, begin, tmp_path
):
    programs(python="trap 'exit 143' TERM; touch started; while sleep 0.02; do :; done")
    job = begin("shard.sbatch", CONTAINER="")
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 143
    assert requeued(tmp_path)


def test_a_sharding_task_that_fails_is_not_started_again(programs, begin, tmp_path):
    programs(python="exit 1")
    assert begin("shard.sbatch", IMAGES="").wait() == 1
    assert "--images" not in words(tmp_path, "python")
    assert not requeued(tmp_path)
