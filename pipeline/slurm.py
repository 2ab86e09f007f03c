"""What SLURM's variables say about the step that a process belongs to: the tasks that one `srun` started."""

import re
from collections.abc import Mapping

from pipeline.checks import environment_number
from shards import UsageError

_SPECIAL_STEPS = 0xFFFFFFF0  # the ids of batch scripts and interactive shells lie above: one process each


def place_in_step(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """This task's number (from 0) and the number of tasks of its step; None outside a step.

    A batch script, or a shell of salloc, sees how many tasks its steps may have, but is none of them.
    """
    if "SLURM_PROCID" not in environment:
        return None
    if "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment:
        return None
    if environment_number(environment, "SLURM_STEP_ID", 0) >= _SPECIAL_STEPS:
        return None
    count = environment_number(environment, "SLURM_NTASKS", 1)
    count = environment_number(environment, "SLURM_STEP_NUM_TASKS", count)
    return environment_number(environment, "SLURM_PROCID", 0), count


def tasks_on_this_node(environment: Mapping[str, str]) -> int | None:
    """How many tasks of the step run on this task's node; None where SLURM does not say."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        if name in environment:
            node = environment_number(environment, "SLURM_NODEID", 0)
            on_nodes = parse_tasks_per_node(environment[name])
            if node >= len(on_nodes):
                raise UsageError(f"SLURM_NODEID={node} and {name}={environment[name]} contradict each other")
            return on_nodes[node]
    per_node = environment_number(environment, "SLURM_NTASKS_PER_NODE", 0)
    return per_node or None


def parse_tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]: the tasks of each node."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise UsageError(
                f"SLURM's tasks per node, {text!r}, cannot be read (2(x3),1 would be: 2, 2, 2, 1)"
            )
        found += [int(match[1])] * int(match[2] or 1)
    return found


def first_host(nodelist: str) -> str:
    """The first machine of a SLURM node list: `gpu[003-010,012],old1` -> `gpu003`."""
    match = re.match(r"(?:[^,\[\]]|\[[^\[\]]+\])+", nodelist)
    if not match:
        raise UsageError(
            f"SLURM's node list, {nodelist!r}, cannot be read: set MASTER_ADDR to the first machine"
        )
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match[0])


def step_port(environment: Mapping[str, str]) -> int:
    """A port for the step's processes to meet at: the same for all of them, unlike that of other steps."""
    job = environment_number(environment, "SLURM_JOB_ID", 0)
    step = environment_number(environment, "SLURM_STEP_ID", 0)
    # Below 32768, where Linux begins to give ports to clients. 31 and 20,000 have no common divisor, so jobs
    # near each other never share a port.
    return 10_000 + (31 * job + step) % 20_000
