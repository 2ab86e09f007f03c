"""The Dask engine on a real scheduler and worker processes: `run_in_processes`' contract on a cluster."""

import importlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.sharding.dask_engine import run_on_dask
from shards import DataError, UsageError, open_dataset

pytest.importorskip("distributed")


class Cluster:
    """A scheduler, and workers of one thread each, as processes of their own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address, self._folder = f"tcp://127.0.0.1:{port}", folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", str(port), **environment)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def add_worker(self, **environment: str) -> "subprocess.Popen[bytes]":
        flags = ("--nthreads", "1", "--no-nanny", "--death-timeout", "30")
        flags += ("--local-directory", str(self._folder))
        modules = os.pathsep.join(path for path in sys.path if path.endswith("work0"))
        worker = self._start("worker", self.address, *flags, **{"PYTHONPATH": modules, **environment})
        self.workers.append(worker)
        return worker

    def _start(self, role: str, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
        # Neither the project's folder nor its path is theirs: what they need of it must be installed.
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{role}", *arguments, "--no-dashboard"],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "ignore", **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def work_module(tmp_path_factory) -> Iterator[ModuleType]:
    """A module that this process and the workers can import, and the scheduler cannot."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "dask_test_work.py").write_text(
        "import os, time\n"
        "def slow(folder, number):\n"
        "    (folder / f'{number}-{os.getpid()}').touch()\n"
        "    time.sleep(0.6)\n"
        "    return number\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("dask_test_work")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Two workers that every test leaves as they are."""
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    for _ in range(2):
        cluster.add_worker()
    yield cluster
    cluster.end()


@pytest.fixture
def new_cluster(tmp_path) -> Iterator[Callable[..., Cluster]]:
    """`new_cluster(workers)`: one that the test may kill."""
    started = []

    def start(workers: int, **environment: str) -> Cluster:
        started.append(Cluster(tmp_path, **environment))
        for _ in range(workers):
            started[-1].add_worker()
        return started[-1]

    yield start
    for cluster in started:
        cluster.end()


def test_results_of_all_tasks_come_back(cluster):
    assert sorted(run_on_dask(cluster.address, abs, range(-20, 0))) == list(range(1, 21))
    assert list(run_on_dask(cluster.address, abs, [])) == []


def test_equal_tasks_are_each_done(cluster, tmp_path):
    made = list(run_on_dask(cluster.address, partial(tempfile.mkdtemp, "", "task"), [str(tmp_path)] * 5))
    assert sorted(made) == sorted(str(path) for path in tmp_path.glob("task*"))
    assert len(set(made)) == 5


def test_tasks_are_drawn_as_workers_become_free(cluster):
    drawn = []
    results = run_on_dask(cluster.address, abs, (drawn.append(n) or n for n in itertools.count()))
    for _ in range(10):
        next(results)
    assert len(drawn) <= 10 + 2 * 2
    results.close()


def test_a_job_told_to_stop_finishes_what_is_under_way(cluster):
    drawn, results = [], []
    tasks = (drawn.append(n) or n for n in itertools.count())
    for result in run_on_dask(cluster.address, abs, tasks, stopping=lambda: len(results) >= 3):
        results.append(result)
    assert sorted(results) == drawn
    assert len(drawn) < 20


def test_an_error_of_one_task_ends_the_job_with_its_message(cluster, tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        list(run_on_dask(cluster.address, open_dataset, itertools.repeat(str(tmp_path / "nowhere"))))


def test_a_worker_killed_in_the_middle_loses_and_doubles_nothing(new_cluster, work_module, tmp_path):
    cluster = new_cluster(2)
    (tmp_path / "begun").mkdir()
    results = run_on_dask(cluster.address, partial(work_module.slow, tmp_path / "begun"), range(8))
    finished = [next(results)]
    last = max((tmp_path / "begun").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    os.kill(int(last.name.split("-")[1]), signal.SIGKILL)
    finished += results
    assert sorted(finished) == list(range(8))
    begun = [path.name.split("-")[0] for path in (tmp_path / "begun").iterdir()]
    assert len(begun) > len(set(begun)) == 8  # the killed one was in the middle of a task


@pytest.mark.slow
def test_a_job_waits_for_workers_and_gives_up_in_the_end(new_cluster, capfd):
    cluster = new_cluster(0)
    threading.Timer(1, cluster.add_worker).start()
    results = run_on_dask(cluster.address, abs, itertools.count(), patience=12)
    next(results)
    waiting = f"{cluster.address} has no workers: waiting for some to join\n"
    assert capfd.readouterr().err == waiting
    cluster.workers[0].kill()
    results.close()
    with pytest.raises(DataError, match=r"has had no workers for .* what was finished is kept"):
        list(run_on_dask(cluster.address, abs, [1], patience=1))
    assert capfd.readouterr().err == waiting


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_given_up(new_cluster):
    cluster = new_cluster(2, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1")
    lost = r"every worker that took one of the tasks died \(2 in all\).*what was finished is kept"
    with pytest.raises(DataError, match=lost):
        list(run_on_dask(cluster.address, os._exit, [9]))


@pytest.mark.slow
def test_the_job_ends_where_the_scheduler_is_lost(new_cluster):
    cluster = new_cluster(1)
    results = run_on_dask(cluster.address, abs, itertools.count())
    next(results)
    cluster.scheduler.kill()
    with pytest.raises(DataError, match=r"connection to the scheduler was lost.*what was finished is kept"):
        list(results)


def test_an_interrupt_does_not_wait_for_the_work_under_way(cluster):
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_on_dask(cluster.address, time.sleep, [4] * 2))
    assert time.monotonic() - begin < 3.5


@pytest.mark.parametrize("listening", [False, True])
def test_an_address_without_a_scheduler_is_refused(listening):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        if listening:
            threading.Thread(target=hang_up, args=(other,), daemon=True).start()
        else:
            other.close()
        with pytest.raises(UsageError, match="no Dask scheduler answers there"):
            list(run_on_dask(address, abs, [1]))


def test_a_scheduler_that_is_not_there_leaves_the_folder_unclaimed(run, small, tmp_path):
    done = run("shard", "--csv", small, "--out", "out", "--dask", "tcp://127.0.0.1:1")
    assert (done.returncode, "no Dask scheduler answers there" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def hang_up(server: socket.socket) -> None:
    """What a server of another protocol does in the end."""
    server.accept()[0].close()


def test_what_is_no_address_is_refused():
    with pytest.raises(UsageError, match="is written as tcp://host:8786"):
        list(run_on_dask("scheduler.json", abs, [1]))


@pytest.mark.slow
def test_workers_without_the_code_of_the_work_are_named(cluster, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def double(number):\n    return 2 * number\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"No module named 'only_here'.*install the same pmc-clip-stream"):
        list(run_on_dask(cluster.address, importlib.import_module("only_here").double, [1]))


@pytest.mark.slow
def test_workers_with_another_version_of_the_project_are_named(new_cluster, tmp_path):
    description = tmp_path / "other" / "pmc_clip_stream-9.9.dist-info" / "METADATA"
    description.parent.mkdir(parents=True)
    description.write_text("Metadata-Version: 2.1\nName: pmc-clip-stream\nVersion: 9.9\n")
    cluster = new_cluster(0)
    cluster.add_worker(PYTHONPATH=str(tmp_path / "other"))
    with pytest.raises(UsageError, match=r"a worker has pmc-clip-stream 9\.9, and this machine"):
        list(run_on_dask(cluster.address, abs, [1]))


def test_shards_packed_on_a_cluster_are_those_packed_here(cluster, run, small, hashes, tmp_path):
    flags = ("--csv", small, "--samples-per-shard", 7)
    here = run("shard", *flags, "--out", tmp_path / "here" / "train", "--workers", 1)
    there = run("shard", *flags, "--out", tmp_path / "there" / "train", "--dask", cluster.address)
    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
