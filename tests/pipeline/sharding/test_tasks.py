"""Which task a process is: told by the flag, or found from SLURM."""

import pytest

from pipeline.sharding.tasks import find_task
from shards import UsageError

ARRAY = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}
STEP = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2"}


@pytest.mark.parametrize(
    ("flag", "environment", "index", "count"),
    [
        (None, {}, 0, 1),
        ("2/5", {}, 2, 5),
        ("2/5", ARRAY | {"SLURM_ARRAY_TASK_MIN": "4"}, 2, 5),
        (None, ARRAY | {"SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_STEP": "1"}, 3, 4),
        (None, ARRAY | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, 3, 4),
        (None, STEP, 2, 3),
        (None, STEP | ARRAY | {"SLURM_ARRAY_TASK_MIN": "4"}, 11, 12),
        (None, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 1, 2),
        # the script of `sbatch --ntasks 4` runs once, with the number of tasks that its steps may have
        (None, {"SLURM_JOB_ID": "9", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 0, 1),
    ],
)
def test_the_share_of_a_process(flag, environment, index, count):
    share = find_task(flag, environment)
    assert (share.index, share.count) == (index, count)


def test_tasks_share_the_work_without_gap_or_overlap():
    shares = [find_task(f"{index}/3", {}) for index in range(3)]
    assert [sum(share.owns(number) for share in shares) for number in range(20)] == [1] * 20


@pytest.mark.parametrize("flag", ["3/3", "1", "-1/3", "a/b", "1/0"])
def test_a_share_that_cannot_be_is_refused(flag):
    with pytest.raises(UsageError, match="write it as I/N, with I from 0 to N - 1"):
        find_task(flag, {})


def test_an_array_with_gaps_is_refused():
    """Of `--array=3,7` nothing tells the second that it is the second."""
    gaps = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"}
    with pytest.raises(UsageError, match="give --task I/N"):
        find_task(None, gaps)
