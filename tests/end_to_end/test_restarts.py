"""Two processes of a run, of which one is lost or asked to end, under torchrun and without it: the weights at
the end are those of the undisturbed run, bit for bit.
"""

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS, PATIENCE = 60, 400


class Job:
    """A run of two processes under torchrun, in a folder; its messages are in a file beside it."""

    def __init__(self, launch, shards: Path, folder: Path) -> None:
        self.launcher, self.environment = launch
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.flags = ["--train-data", shards / "train", "--val-data", shards / "valid", "--model", "tiny"]
        self.flags += ["--mlm", "--global-batch-size", 24, "--steps", STEPS, "--epochs", 8, "--lr", 1e-3]
        self.flags += ["--save-every", 2, "--log-every", 1, "--seed", 1, "--val-frequency", 2]
        self.flags += ["--logs", folder.parent, "--name", folder.name, "--resume", "auto"]

    def start(self, restarts: int = 0) -> subprocess.Popen:
        command = self.launcher(2, "train")
        command[command.index("--nproc_per_node") : command.index("--nproc_per_node")] = [
            "--max-restarts",
            str(restarts),
            "--monitor-interval",
            "0.1",
        ]
        return self._popen([*command, *self.flags])

    def start_rank(self, rank: int, port: int, *flags: object) -> subprocess.Popen:
        """One of the two, without torchrun."""
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return self._popen([*self.launcher(1, "train"), *self.flags, *flags], **place)

    def _popen(self, command: list[object], **place: str) -> subprocess.Popen:
        with open(self.log, "a") as log:
            return subprocess.Popen(
                [str(word) for word in command], env=self.environment(**place), stdout=log, stderr=log
            )

    def said(self) -> str:
        return self.log.read_text()

    def step(self) -> int:
        """The last step that is logged."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return max((json.loads(line)["step"] for line in lines), default=0)

    def wait_for_step(self, step: int, *processes: subprocess.Popen) -> None:
        self.wait_until(lambda: self.step() >= step, *processes)

    def wait_until(self, condition: Callable[[], bool], *processes: subprocess.Popen) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.said()
            assert all(process.poll() is None for process in processes), self.said()
            time.sleep(0.001)

    def half_written(self) -> list[str]:
        """Checkpoints that are being written, or that a killed process left so."""
        folder = self.folder / "checkpoints"
        paths = list(folder.iterdir()) if folder.exists() else []
        in_parts = [path for path in paths if path.is_dir() and not (path / "checkpoint.json").exists()]
        return [path.name for path in paths if path.name.startswith(".step-")] + [
            path.name for path in in_parts
        ]

    def result(self) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
        """The state at the end, and what was logged of training and validation but for rates."""
        checkpoint = Checkpoint.load(str(self.folder / "checkpoints"))
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        noisy = {"samples_per_second", "step_seconds", "tflops_per_second", "loader_wait"}
        logged = [
            {name: value for name, value in entry.items() if name not in noisy}
            for entry in lines
            if entry["kind"] in ("train", "valid")
        ]
        return checkpoint.tensors() | {"step": torch.tensor(checkpoint.step)}, logged


def workers(torchrun: subprocess.Popen) -> dict[int, int]:
    """Rank -> process id of the processes that a torchrun has started."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == torchrun.pid and fields[0] != "Z":
                variables = dict(
                    word.split("=", 1) for word in (entry / "environ").read_text().split("\0") if "=" in word
                )
                found[int(variables["RANK"])] = int(entry.name)
        except (OSError, KeyError, IndexError):
            continue
    return found


@pytest.fixture
def make_job(launch, sample_shards, tmp_path):
    return lambda name: Job(launch, sample_shards, tmp_path / name)


@pytest.fixture(scope="module")
def whole(launch, sample_shards, tmp_path_factory):
    """Weights and log of the undisturbed run."""
    job = Job(launch, sample_shards, tmp_path_factory.mktemp("whole") / "whole")
    assert job.start().wait(PATIENCE) == 0, job.said()
    return job.result()


def assert_as_undisturbed(job: Job, whole) -> None:
    weights, logged = job.result()
    assert weights.keys() == whole[0].keys()
    assert [name for name in weights if not torch.equal(weights[name], whole[0][name])] == []
    assert logged == whole[1]


def test_one_of_two_killed_ten_times_under_torchrun(make_job, whole):
    """At random moments; four of them while a checkpoint is written."""
    chance = random.Random(0)
    job = make_job("killed")
    torchrun = job.start(restarts=10)
    torn = 0
    for kill in range(10):
        job.wait_for_step(job.step() + chance.randint(1, 5), torchrun)
        if kill % 5 in (1, 3):
            job.wait_until(lambda: bool(job.half_written()), torchrun)
            victim = 0
        else:
            time.sleep(chance.uniform(0, 0.6))
            victim = chance.randrange(2)
        os.kill(workers(torchrun)[victim], signal.SIGKILL)
        torn += bool(job.half_written())
    assert torchrun.wait(PATIENCE) == 0, job.said()
    assert torn > 0
    assert job.half_written() == []
    assert_as_undisturbed(job, whole)


def test_one_of_two_killed_with_fsdp(make_job):
    """A third of the run; at one of the kills a checkpoint in parts is being written."""
    jobs = [make_job(name) for name in ("undisturbed", "killed")]
    for job in jobs:
        job.flags += ["--fsdp", "--steps", STEPS // 3]
    undisturbed, killed = jobs
    assert undisturbed.start().wait(PATIENCE) == 0, undisturbed.said()
    torchrun = killed.start(restarts=2)
    for victim in range(2):
        killed.wait_for_step(killed.step() + 4, torchrun)
        if victim:
            killed.wait_until(lambda: bool(killed.half_written()), torchrun)
        os.kill(workers(torchrun)[victim], signal.SIGKILL)
    assert torchrun.wait(PATIENCE) == 0, killed.said()
    assert killed.half_written() == []
    assert_as_undisturbed(killed, undisturbed.result())


def test_torchrun_asked_to_end_passes_it_on_and_the_run_goes_on_later(make_job, whole):
    job = make_job("asked")
    for number in (signal.SIGTERM, signal.SIGINT):
        torchrun = job.start(restarts=3)
        job.wait_for_step(job.step() + 3, torchrun)
        torchrun.send_signal(number)
        assert torchrun.wait(PATIENCE) != 0
        assert (job.folder / "interrupted").exists(), job.said()
        assert f"interrupted: saved after step {job.step()}" in job.said()
    assert job.start().wait(PATIENCE) == 0, job.said()
    assert_as_undisturbed(job, whole)


def test_a_signal_to_one_of_two_ends_both_and_torchrun_does_not_start_them_anew(make_job):
    job = make_job("one")
    torchrun = job.start(restarts=1)
    job.wait_for_step(3, torchrun)
    os.kill(workers(torchrun)[1], signal.SIGUSR1)
    assert torchrun.wait(PATIENCE) != 0
    assert (job.folder / "interrupted").exists(), job.said()
    saved = job.step()
    assert f"interrupted: saved after step {saved}" in job.said()
    assert "interrupted: the same torchrun has started the processes once more" in job.said()
    assert saved < STEPS


def test_the_processes_of_a_torchrun_that_was_killed_save_and_end(make_job, whole):
    job = make_job("orphans")
    torchrun = job.start()
    job.wait_for_step(3, torchrun)
    kill_alone(torchrun, *workers(torchrun).values())
    assert f"interrupted: saved after step {job.step()}" in job.said()
    assert job.step() < STEPS
    assert job.start().wait(PATIENCE) == 0, job.said()
    assert_as_undisturbed(job, whole)


def test_a_process_of_a_torchrun_that_was_killed_does_not_wait_for_the_others(make_job):
    job = make_job("orphans")
    torchrun = job.start()
    job.wait_until(lambda: len(workers(torchrun)) == 2, torchrun)
    waiting, late = workers(torchrun)[0], workers(torchrun)[1]
    os.kill(late, signal.SIGSTOP)
    try:
        job.wait_until(lambda: heeds(waiting, signal.SIGTERM), torchrun)
        time.sleep(1)
        kill_alone(torchrun, waiting)
        assert "interrupted: nothing new to save" in job.said()
    finally:
        os.kill(late, signal.SIGKILL)


def kill_alone(torchrun: subprocess.Popen, *started: int) -> None:
    """Kill it with SIGKILL, and wait until these processes that it started have ended by themselves."""
    torchrun.kill()
    torchrun.wait()
    deadline = time.monotonic() + 60
    while any(alive(process) for process in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def heeds(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "another process is gone"),
        (signal.SIGSTOP, "no answer from another process within --timeout"),
    ],
)
@pytest.mark.parametrize("victim", [0, 1])
def test_without_torchrun_a_lost_process_ends_the_other(make_job, number, message, victim):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = make_job("lost")
    ranks = [job.start_rank(rank, port, "--timeout", 15) for rank in range(2)]
    try:
        job.wait_for_step(3, *ranks)
        ranks[victim].send_signal(number)
        assert ranks[1 - victim].wait(90) == 1, job.said()
        assert f"rank {1 - victim}: error: {message}" in job.said()
    finally:
        for process in ranks:
            process.kill()
            process.wait()
