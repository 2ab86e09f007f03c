"""Requests to end: all processes at the same step, a second one at once, all in a bounded time."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.interruption import Interrupted, Interruption
from pipeline.lost_process import naming_lost_processes
from pipeline.topology import Topology
from shards import DataError

FORK = multiprocessing.get_context("fork")


class Job:
    """Forked processes of one job that report lines to the test."""

    def __init__(self, work, count: int, *arguments: object) -> None:
        self.lines = [FORK.Queue() for _ in range(count)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [
            FORK.Process(target=run_rank, args=(work, rank, count, port, lines, *arguments))
            for rank, lines in enumerate(self.lines)
        ]
        for process in self.processes:
            process.start()

    def line(self, rank: int = 0) -> object:
        return self.lines[rank].get(timeout=60)

    def signal(self, number: int, rank: int = 0) -> None:
        os.kill(self.processes[rank].pid, number)

    def codes(self) -> list[int | None]:
        for process in self.processes:
            process.join(60)
        return [process.exitcode for process in self.processes]


def run_rank(work, rank: int, count: int, port: int, lines, *arguments: object) -> None:
    torch.set_num_threads(1)
    topology = Topology(rank, count, rank, count)
    if count > 1:
        store = dist.TCPStore("127.0.0.1", port, count, rank == 0, wait_for_workers=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    work(topology, lines, *arguments)


@pytest.fixture
def job():
    """`job(work, count, …)`: processes that run `work(topology, lines, …)`; none outlives the test."""
    started: list[Job] = []

    def start(work, count: int = 1, *arguments: object) -> Job:
        started.append(Job(work, count, *arguments))
        return started[-1]

    yield start
    for one in started:
        for process in one.processes:
            process.kill()
            process.join()


def steps(topology: Topology, lines, folder: Path) -> None:
    """Steps without end, until the processes agree."""
    with Interruption(topology, folder) as interruption:
        interruption.begin_steps()
        step = 0
        while not interruption.agreed():
            step += 1
            time.sleep(0.01 * (1 + topology.rank))
            if step == 3:
                lines.put("ready")
        lines.put(step)
        interruption.end(f"step {step}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_run_with_code_75_and_a_marker(job, tmp_path, number):
    running = job(steps, 1, tmp_path)
    assert running.line() == "ready"
    running.signal(number)
    assert running.codes() == [75]
    assert (tmp_path / "interrupted").exists()


def test_a_signal_to_one_process_ends_all_at_the_same_step(job, tmp_path):
    running = job(steps, 3, tmp_path)
    assert [running.line(rank) for rank in range(3)] == ["ready"] * 3
    running.signal(signal.SIGUSR1, rank=1)
    assert running.codes() == [75] * 3
    assert len({running.line(rank) for rank in range(3)}) == 1


def stuck(topology: Topology, lines, folder: Path) -> None:
    """A step that never ends, waiting outside of Python for a process that does not come."""
    with Interruption(topology, folder) as interruption:
        interruption.begin_steps()
        if topology.rank:
            time.sleep(600)
        lines.put("ready")
        dist.barrier()


def test_a_second_signal_ends_a_process_at_once_whatever_it_waits_for(job, tmp_path):
    running = job(stuck, 2, tmp_path)
    assert running.line() == "ready"
    running.signal(signal.SIGTERM)
    running.processes[0].join(1.5)
    assert running.processes[0].is_alive()
    running.signal(signal.SIGTERM)
    running.processes[0].join(60)
    assert running.processes[0].exitcode == 143


def test_one_request_that_comes_twice_is_one(job, tmp_path):
    """Ctrl-C reaches torchrun and its processes, and torchrun passes it on."""
    running = job(steps, 1, tmp_path)
    assert running.line() == "ready"
    running.signal(signal.SIGINT)
    running.signal(signal.SIGTERM)
    assert running.codes() == [75]


def starting(topology: Topology, lines, folder: Path) -> None:
    with Interruption(topology, folder):
        lines.put("ready")
        time.sleep(600)


def test_before_the_first_step_a_signal_ends_the_process_where_it_is(job, tmp_path):
    running = job(starting, 1, tmp_path)
    assert running.line() == "ready"
    running.signal(signal.SIGTERM)
    assert running.codes() == [75]
    assert (tmp_path / "interrupted").exists()


def starting_under_torchrun(topology: Topology, lines, folder: Path) -> None:
    os.environ["TORCHELASTIC_RUN_ID"] = "job"
    starting(topology, lines, folder)


@pytest.mark.parametrize(("number", "marked"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_torchrun_that_starts_its_processes_again_asks_nobody_to_end(job, tmp_path, number, marked):
    """torchrun sends SIGTERM to the others when it has lost one; a scheduler's warning is SIGUSR1."""
    running = job(starting_under_torchrun, 1, tmp_path)
    assert running.line() == "ready"
    running.signal(number)
    assert running.codes() == [75]
    assert (tmp_path / "interrupted").exists() is marked


def validating(topology: Topology, lines, folder: Path) -> None:
    """A first step, then a validation in which the processes have different numbers of batches."""
    with Interruption(topology, folder) as interruption:
        interruption.begin_steps()
        assert not interruption.agreed()
        assert list(interruption.watch(range(topology.rank))) == list(range(topology.rank))
        lines.put("ready")
        try:
            for _ in interruption.watch(range(10_000)):
                time.sleep(0.01)
        except Interrupted:
            lines.put("given up")
        assert interruption.agreed()
        interruption.end("nothing")


def test_a_validation_is_given_up_by_all(job, tmp_path):
    running = job(validating, 2, tmp_path)
    assert [running.line(rank) for rank in range(2)] == ["ready"] * 2
    for rank in range(2):
        running.signal(signal.SIGTERM, rank)
    assert [running.line(rank) for rank in range(2)] == ["given up"] * 2
    assert running.codes() == [75, 75]


@pytest.mark.parametrize(("run_id", "again"), [("job", True), ("another", False), (None, False)])
def test_only_a_restart_by_the_same_torchrun_ends_again(tmp_path, monkeypatch, run_id, again):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    interruption = Interruption(Topology(), tmp_path)
    assert not interruption.asked_before()
    with pytest.raises(SystemExit, match="75"), interruption:
        interruption.end("step 5")
    assert json.loads((tmp_path / "interrupted").read_text())
    if run_id:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    else:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert interruption.asked_before() is again
    assert not (tmp_path / "interrupted").exists()


def averaging(topology: Topology, lines) -> None:
    try:
        with naming_lost_processes(topology):
            while True:
                dist.all_reduce(torch.ones(3))
                lines.put("step")
                time.sleep(0.05)
    except DataError as error:
        lines.put(str(error))


def test_a_lost_process_is_named_by_the_others(job):
    running = job(averaging, 2)
    assert running.line(0) == running.line(1) == "step"
    running.signal(signal.SIGKILL, rank=1)
    while (said := running.line(0)) == "step":
        pass
    assert "another process is gone (" in said
    assert ".cc" not in said
    assert "--resume auto" in said


def test_trouble_of_its_own_is_not_taken_for_a_lost_process():
    with pytest.raises(RuntimeError, match="shapes"), naming_lost_processes(Topology(0, 2, 0, 2)):
        raise RuntimeError("shapes do not fit")
