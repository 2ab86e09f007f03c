"""Which of several tasks this process is: each packs its own share of the shards."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.checks import environment_number
from pipeline.slurm import place_in_step
from shards import UsageError


@dataclass(frozen=True)
class TaskShare:
    """Task `index` (from 0) of `count`, and where that was found."""

    index: int
    count: int
    source: str

    def owns(self, number: int) -> bool:
        """Whether the shard (or other unit of work) of this number is this task's."""
        return number % self.count == self.index


def find_task(flag: str | None, environment: Mapping[str, str]) -> TaskShare:
    """The share that `--task I/N` gives, or else SLURM: an array's task, or a step's process, or both.

    A batch script, which SLURM runs once however many tasks it reserves, is one task.
    """
    if flag is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", flag)
        if not found or not int(found[1]) < int(found[2]):
            raise UsageError(f"--task {flag}: write it as I/N, with I from 0 to N - 1")
        return TaskShare(int(found[1]), int(found[2]), "--task")
    index, count, sources = 0, 1, []
    array_size = environment_number(environment, "SLURM_ARRAY_TASK_COUNT", 1)
    if array_size > 1:
        number, first, step = (
            environment_number(environment, f"SLURM_ARRAY_TASK_{name}", default)
            for name, default in (("ID", None), ("MIN", 0), ("STEP", 1))
        )
        index, count = (number - first) // step, array_size
        sources.append("SLURM array")
        if index >= count:
            raise UsageError(
                "this SLURM array leaves out numbers in its middle, so its tasks cannot tell their shares: "
                "give --task I/N"
            )
    process, processes = place_in_step(environment) or (0, 1)
    if processes > 1:
        index, count = index * processes + process, count * processes
        sources.append("SLURM step")
    return TaskShare(index, count, " and ".join(sources))
