"""SLURM's own notations."""

import pytest

from pipeline.slurm import first_host, parse_tasks_per_node, step_port
from shards import UsageError


@pytest.mark.parametrize(
    ("text", "tasks"),
    [("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("1,4(x2)", [1, 4, 4]), ("8(x1)", [8])],
)
def test_tasks_per_node(text, tasks):
    assert parse_tasks_per_node(text) == tasks


@pytest.mark.parametrize("text", ["", "2(3)", "x2", "2(x3)1", "2,,1"])
def test_tasks_per_node_that_cannot_be_read_are_refused(text):
    with pytest.raises(UsageError, match="cannot be read"):
        parse_tasks_per_node(text)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("vm", "vm"),
        ("gpu-a,gpu-b", "gpu-a"),
        ("gpu[003-010,012],old1", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("login1,gpu[1-2]", "login1"),
        ("rack[1-2]node[01-04]-ib", "rack1node01-ib"),
        ("n1.cluster.example.org,n2", "n1.cluster.example.org"),
    ],
)
def test_the_first_machine_of_a_list(nodelist, host):
    assert first_host(nodelist) == host


def test_a_list_without_a_machine_is_refused():
    with pytest.raises(UsageError, match="set MASTER_ADDR"):
        first_host("")


def test_steps_that_may_run_side_by_side_meet_at_ports_of_their_own():
    jobs = {
        step_port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0"}) for job in range(10**6, 10**6 + 20_000)
    }
    assert len(jobs) == 20_000
    assert min(jobs) >= 1024
    assert max(jobs) < 32_768  # where Linux begins to give ports to clients
    same_job = {step_port({"SLURM_JOB_ID": "1", "SLURM_STEP_ID": str(step)}) for step in range(31)}
    assert len(same_job) == 31
