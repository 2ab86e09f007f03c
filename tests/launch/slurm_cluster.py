"""A SLURM cluster on this one machine: two nodes, each with a daemon of its own."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("127.0.0.1", "127.0.0.2")  # their names are their addresses, so that each finds the others
# A job that is put back into the queue waits there as long as what it was allowed (a credential) is valid.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge.socket,cred_expire=8
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
KillWait=60
FirstJobId={first_job}
NodeName=127.0.0.1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=127.0.0.2 NodeAddr=127.0.0.2 Port={ports[2]} CPUs=4
PartitionName=test Nodes=ALL Default=YES
"""
END_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass(frozen=True)
class Slurm:
    """The cluster, for one who has this environment."""

    environment: dict[str, str]

    def ask(self, *words: object, folder: Path | None = None, **variables: str) -> tuple[int, str, str]:
        """What a command of SLURM's ends with: its exit code, output and errors."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def command(self, *words: object, folder: Path | None = None, **variables: str) -> str:
        """What a command of SLURM's prints."""
        code, printed, errors = self.ask(*words, folder=folder, **variables)
        assert code == 0, (words, printed, errors)
        return printed

    def submit(self, folder: Path, *words: object, **variables: str) -> str:
        """The number of a new job: `submit(folder, "--ntasks=2", script, "--flag")`."""
        return self.command("sbatch", "--parsable", *words, folder=folder, **variables).strip()

    def states(self, job: str) -> list[str]:
        """The state of the job, or of each of its tasks where it is an array."""
        lines = self.command("scontrol", "show", "job", job, "--oneliner").splitlines()
        return [line.split("JobState=")[1].split()[0] for line in lines]

    def wait(self, job: str) -> list[str]:
        """The states that a job, or each task of an array, ended in."""
        deadline = time.monotonic() + 240
        while not END_STATES.issuperset(found := self.states(job)):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found


@contextmanager
def one_machine_cluster(folder: Path, environment: dict[str, str]) -> Iterator[Slurm]:
    """Inside, the cluster's daemons run, as the user of this process, with all that is theirs in `folder`."""
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    config = CONFIG.format(
        host=socket.gethostname().split(".")[0],
        user=user,
        ports=free_ports(3),
        folder=folder,
        # The port of a job follows from its number, which another cluster of tests on this machine has not.
        first_job=1 + os.getpid() % 1_000_000,
    )
    (folder / "slurm.conf").write_text(config)
    slurm = Slurm(environment | {"SLURM_CONF": str(folder / "slurm.conf")})
    files = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "seed-file")]
    with ExitStack() as daemons:

        def start(*command: str) -> None:
            daemons.enter_context(
                daemon(command, slurm.environment, folder / f"{'-'.join(command)[:20]}.log")
            )

        # By force: other users of the machine cannot reach its socket, and need not.
        start("munged", "--foreground", "--force", f"--key-file={key}", *files)
        wait_until((folder / "munge.socket").exists, folder)
        start("slurmctld", "-D", "-c")
        for node in NODES:
            start("slurmd", "-D", "-N", node)
        wait_until(lambda: slurm.ask("sinfo", "--noheader", "--format=%t")[1].split() == ["idle"], folder)
        try:
            yield slurm
        finally:
            slurm.ask("scancel", "--full", "--signal=KILL", f"--user={user}")
            wait_until(
                lambda: not slurm.ask("squeue", "--noheader", "--states=running,completing")[1], folder
            )


@contextmanager
def daemon(command: tuple[str, ...], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Inside, the command runs."""
    with open(log, "w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    with ExitStack() as opened:
        probes = [opened.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def wait_until(true: Callable[[], bool], folder: Path) -> None:
    """Wait half a minute at most, then fail with the last words of every log in the folder."""
    deadline = time.monotonic() + 30
    while not true():
        logs = {log.name: log.read_text()[-2000:] for log in folder.glob("*.log")}
        assert time.monotonic() < deadline, logs
        time.sleep(0.1)
