"""Which process this is among how many: what torchrun, Open MPI and SLURM say, and what cannot be."""

import os
import socket

import pytest

from pipeline.topology import Topology
from shards import UsageError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "pmc-clip",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "4242",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
# What a batch script sees that was submitted with --nodes 2 --ntasks 8 --cpus-per-task 3.
BATCH = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_CPUS_PER_TASK": "3",
}
PLACE = (5, 8, 1, 4)
PORT_OF_STEP = 10_000 + 31 * 77


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Topology()),
        (TORCHRUN, Topology(*PLACE, ("node-a", 4242))),
        ({"RANK": "2", "WORLD_SIZE": "3"}, Topology(2, 3)),
        (STEP, Topology(*PLACE, ("gpu03", PORT_OF_STEP), 3)),
        (STEP | {"MASTER_ADDR": "ib-gpu03", "MASTER_PORT": "99"}, Topology(*PLACE, ("ib-gpu03", 99), 3)),
        # part of a larger allocation: srun --nodes 1 --ntasks 2
        (
            BATCH | {"SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"},
            Topology(0, 2, 0, 2, ("127.0.0.1", PORT_OF_STEP + 3)),
        ),
        (OPEN_MPI | {"MASTER_ADDR": "node-a"}, Topology(*PLACE, ("node-a", 29500))),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, Topology(5, 8, 1, 8, ("127.0.0.1", 29500))),
        # the innermost launcher counts: torchrun in each of two tasks of srun; mpirun, which starts a daemon
        # a node by srun; the same on mpirun's own node, where the batch script's variables are seen
        (STEP | TORCHRUN | {"SLURM_STEP_NUM_TASKS": "2"}, Topology(*PLACE, ("node-a", 4242))),
        (STEP | OPEN_MPI | {"SLURM_STEP_NUM_TASKS": "1"}, Topology(*PLACE, ("gpu03", 29500))),
        (BATCH | OPEN_MPI, Topology(*PLACE, ("gpu03", 29500))),
    ],
)
def test_each_launcher_is_understood(environment, expected):
    assert Topology.from_environment(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        BATCH,
        {name: value for name, value in BATCH.items() if name != "SLURM_PROCID"},  # a shell of salloc
        # a shell of salloc where the site makes it a step, and a batch script that has its step's number
        BATCH | {"SLURM_STEP_ID": str(0xFFFFFFFA), "SLURM_STEP_NUM_TASKS": "1"},
        BATCH | {"SLURM_STEP_ID": str(0xFFFFFFFB)},
        # one task of an array: a run of its own
        BATCH | {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"},
        {name: value for name, value in TORCHRUN.items() if name.startswith("MASTER")},
    ],
)
def test_python_in_a_batch_script_or_an_interactive_shell_is_one_process(environment):
    assert Topology.from_environment(environment) == Topology()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' in the environment is not a number"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "RANK='-1' in the environment is not a number"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "contradict each other: rank 4 of 4"),
        ({"RANK": "1"}, "WORLD_SIZE is missing"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 in the environment, but this process is one of 1"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "on its machine 4 of 4"),
        (STEP | {"WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment, but this process is one of 8"),
        (STEP | {"SLURM_PROCID": "8"}, "contradict each other: rank 8 of 8"),
        (STEP | {"SLURM_NODEID": "2"}, r"SLURM_NODEID=2 and SLURM_STEP_TASKS_PER_NODE=4\(x2\) contradict"),
        (OPEN_MPI, "mpirun -x MASTER_ADDR=HOST"),
        ({name: OPEN_MPI[name] for name in ("OMPI_COMM_WORLD_RANK",)}, "OMPI_COMM_WORLD_SIZE is missing"),
        # eight trainings that would write to one folder
        (STEP | TORCHRUN | {"GROUP_WORLD_SIZE": "1"}, "srun started 8 tasks and a torchrun in each"),
    ],
)
def test_what_cannot_be_is_refused(environment, message):
    with pytest.raises(UsageError, match=message):
        Topology.from_environment(environment)


def test_what_was_found_reads_the_same_in_the_words_of_torchrun():
    found = Topology.from_environment(STEP)
    assert Topology.from_environment(found.variables()) == Topology(*PLACE, ("gpu03", PORT_OF_STEP))


def test_a_process_decodes_on_its_own_cores_or_on_its_share_of_the_machines(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    assert Topology(0, 4, 0, 4).default_workers() == 3
    assert Topology(0, 4, 0, 4, own_cpus=8).default_workers() == 8
    # SLURM bound the task to the cores that it set aside
    assert Topology(0, 4, 0, 4, own_cpus=12).default_workers() == 12
    assert Topology(0, 16, 0, 16).default_workers() == 1


def test_processes_that_know_no_address_are_told_what_to_do(run, sample_shards):
    flags = ["--train-data", sample_shards / "train", "--model", "tiny", "--steps", 1]
    done = run("train", *flags, RANK="1", WORLD_SIZE="2")
    assert done.returncode == 2
    assert "rank 1: error: process 1 of 2 is not told where the others are: set MASTER_ADDR" in done.stderr


def test_a_meeting_point_that_is_taken_is_named(start, sample_shards):
    flags = ["--train-data", sample_shards / "train", "--model", "tiny", "--steps", 1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = start("train", *flags, **place)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert f"rank 0: error: the processes could not meet at 127.0.0.1:{port}" in errors
    assert "Traceback" not in errors
