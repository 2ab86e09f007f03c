"""Which process this is among how many: read from the variables of torchrun, Open MPI or SLURM."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline import slurm
from pipeline.checks import environment_number
from shards import UsageError

DEFAULT_PORT = 29500  # torchrun's own


@dataclass(frozen=True)
class Topology:
    """A process's place: its rank among all processes, and among those of its machine.

    `meeting_point` is the host and port of rank 0, where the processes find each other; None where
    processes are told their place but not where the others are. `own_cpus` are the cores that
    the launcher set aside for this process; None where the machine's processes share its cores.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    meeting_point: tuple[str, int] | None = None
    own_cpus: int | None = None

    def __post_init__(self) -> None:
        if not (self.rank < self.world_size and self.local_rank < self.local_world_size <= self.world_size):
            raise UsageError(
                f"the launcher's variables contradict each other: rank {self.rank} of {self.world_size}, on "
                f"its machine {self.local_rank} of {self.local_world_size}: were some of them set by hand?"
            )

    @property
    def together(self) -> bool:
        """Whether this process has others that it can find."""
        return self.world_size > 1 and self.meeting_point is not None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints, logs and saves."""
        return self.rank == 0

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Topology":
        """Read the variables of the innermost launcher; without any, a single process.

        torchrun runs in a task of srun, and mpirun starts its processes by srun, but not the other way
        round: so torchrun's variables (also when set by hand) come first, then Open MPI's, then SLURM's.
        Raises UsageError where they contradict each other.
        """
        if "RANK" in environment:
            return _from_torchrun(environment)
        if "OMPI_COMM_WORLD_RANK" in environment:
            found = _from_open_mpi(environment)
        elif place := slurm.place_in_step(environment):
            found = _from_slurm(*place, environment)
        else:
            found = Topology()
        told = environment_number(environment, "WORLD_SIZE", found.world_size)
        if told != found.world_size:
            raise UsageError(
                f"WORLD_SIZE={told} in the environment, but this process is one of {found.world_size}: leave "
                "WORLD_SIZE to the launcher, or set RANK as well"
            )
        return found

    def variables(self) -> dict[str, str]:
        """This place as torchrun would have told it: for libraries, which read its variables."""
        values: dict[str, object] = {"RANK": self.rank, "WORLD_SIZE": self.world_size}
        values |= {"LOCAL_RANK": self.local_rank, "LOCAL_WORLD_SIZE": self.local_world_size}
        if self.meeting_point:
            values |= zip(("MASTER_ADDR", "MASTER_PORT"), self.meeting_point, strict=True)
        return {name: str(value) for name, value in values.items()}

    def default_workers(self) -> int:
        """Decoding threads for each process: its own cores, or its share of the machine's."""
        usable = len(os.sched_getaffinity(0))
        if self.own_cpus:
            return min(usable, self.own_cpus)
        return max(1, usable // self.local_world_size)


def _from_torchrun(environment: Mapping[str, str]) -> Topology:
    agents = environment_number(environment, "GROUP_WORLD_SIZE", 1)
    _, tasks = slurm.place_in_step(environment) or (0, 1)
    if "TORCHELASTIC_RUN_ID" in environment and agents == 1 < tasks:
        raise UsageError(
            f"srun started {tasks} tasks and a torchrun in each, and these know nothing of one another: "
            "start one task a node and give torchrun --nnodes and --rdzv_endpoint (as launch/train.sbatch "
            "does), or leave torchrun out"
        )
    local_rank = environment_number(environment, "LOCAL_RANK", 0)
    return Topology(
        environment_number(environment, "RANK"),
        environment_number(environment, "WORLD_SIZE"),
        local_rank,
        environment_number(environment, "LOCAL_WORLD_SIZE", local_rank + 1),
        _meeting_point(environment, None, DEFAULT_PORT),
    )


def _from_open_mpi(environment: Mapping[str, str]) -> Topology:
    rank, world_size, local_rank, local_world_size = (
        environment_number(environment, f"OMPI_COMM_WORLD_{name}")
        for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    )
    host = _first_machine(environment, only=local_world_size == world_size)
    meeting_point = _meeting_point(environment, host, DEFAULT_PORT)
    if meeting_point is None:
        raise UsageError(
            "Open MPI does not tell where rank 0 is: give mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500, "
            "where HOST is the first machine as the others reach it"
        )
    return Topology(rank, world_size, local_rank, local_world_size, meeting_point)


def _from_slurm(rank: int, world_size: int, environment: Mapping[str, str]) -> Topology:
    local_rank = environment_number(environment, "SLURM_LOCALID", 0)
    local_world_size = slurm.tasks_on_this_node(environment) or local_rank + 1
    host = _first_machine(environment, only=local_world_size == world_size)
    return Topology(
        rank,
        world_size,
        local_rank,
        local_world_size,
        _meeting_point(environment, host, slurm.step_port(environment)),
        environment_number(environment, "SLURM_CPUS_PER_TASK", 0) or None,
    )


def _meeting_point(environment: Mapping[str, str], host: str | None, port: int) -> tuple[str, int] | None:
    """MASTER_ADDR and MASTER_PORT, each with what stands in for it."""
    host = environment.get("MASTER_ADDR") or host
    return (host, environment_number(environment, "MASTER_PORT", port)) if host else None


def _first_machine(environment: Mapping[str, str], *, only: bool) -> str | None:
    """The machine of rank 0: this one if it is the only one, or SLURM's first."""
    if only:
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    return slurm.first_host(nodes) if nodes else None
