"""launch/torchrun.sh on two machines: network namespaces with names and addresses, and a cable."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "torchrun.sh"
HOSTS = {"node-a": "10.231.7.1", "node-b": "10.231.7.2"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def machines(need) -> Iterator[dict[str, list[str]]]:
    """Of each machine, by its name, the words before a command that is to run on it."""
    need("two network namespaces", "ip", "unshare")
    namespaces = {name: f"{name}-{os.getpid()}" for name in HOSTS}
    settings = [Path("/etc/netns") / namespace for namespace in namespaces.values()]
    try:
        for namespace in namespaces.values():
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
            folder = Path("/etc/netns") / namespace  # what is there stands in for /etc
            folder.mkdir(parents=True)
            (folder / "hosts").write_text("".join(f"{address} {host}\n" for host, address in HOSTS.items()))
        one, other = namespaces.values()
        ip("-n", one, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", other)
        for name, namespace in namespaces.items():
            ip("-n", namespace, "addr", "add", f"{HOSTS[name]}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "eth0", "up")
        as_host = ["unshare", "--uts", "bash", "-c", 'hostname "$0" && exec "$@"']
        yield {
            name: ["ip", "netns", "exec", namespace, *as_host, name] for name, namespace in namespaces.items()
        }
    finally:
        for namespace in namespaces.values():
            for process in processes_of(namespace):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", namespace], check=False)
        for folder in settings:
            (folder / "hosts").unlink(missing_ok=True)
            folder.rmdir()


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"no network namespaces can be made here: {done.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)


def processes_of(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.split()]


@pytest.fixture
def train(machines, sample_shards, training_flags, launch, tmp_path):
    """Start the same script on both machines; a job's output goes to a file of its machine's name."""
    _, environment = launch
    variables = {
        "NODES": "2",
        "PROCESSES": "1",
        "RENDEZVOUS": "node-a:29500",
        "TRAIN_DATA": str(sample_shards / "train"),
        "VAL_DATA": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }

    def start() -> list[subprocess.Popen]:
        jobs = []
        for name, on_machine in machines.items():
            with open(tmp_path / f"{name}.log", "w") as log:
                command = [*on_machine, "bash", str(SCRIPT), *training_flags]
                jobs.append(
                    subprocess.Popen(
                        command, cwd=tmp_path, env=environment(**variables), stdout=log, stderr=log
                    )
                )
        return jobs

    return start


def logs(folder: Path) -> str:
    return "\n".join(log.read_text() for log in folder.glob("*.log"))


def test_two_machines_of_one_process_end_with_the_weights_of_one_machine_of_two(
    train, assert_undisturbed, tmp_path
):
    for job in train():
        assert job.wait() == 0, logs(tmp_path)
    assert_undisturbed(tmp_path / "runs" / "pmc-clip")


def test_a_process_lost_on_one_machine_is_started_again_on_both_and_nothing_differs(
    train, machines, assert_undisturbed, tmp_path
):
    jobs = train()
    checkpoints = tmp_path / "runs" / "pmc-clip" / "checkpoints"
    while not list(checkpoints.glob("step-*.pt")):
        assert all(job.poll() is None for job in jobs), logs(tmp_path)
        time.sleep(0.05)
    namespace = machines["node-b"][3]
    lost = [process for process in processes_of(namespace) if trains(process)]
    for process in lost:
        os.kill(process, signal.SIGKILL)
    assert len(lost) == 1
    for job in jobs:
        assert job.wait() == 0, logs(tmp_path)
    assert_undisturbed(tmp_path / "runs" / "pmc-clip")


def trains(process: int) -> bool:
    """Whether it is one that torchrun started to train, not torchrun itself."""
    words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    return "pipeline.train" in words and "--rdzv_id" not in words
