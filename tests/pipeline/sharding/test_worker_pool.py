"""The worker processes behind `pipeline.shard`: few tasks under way, prompt to stop, dead ones noticed."""

import itertools
import multiprocessing
import os
import signal
import threading
import time

import pytest

from pipeline.sharding.worker_pool import run_in_processes
from shards import DataError


def test_results_of_all_tasks_come_back():
    assert sorted(run_in_processes(abs, range(-20, 0), 2)) == list(range(1, 21))
    assert not multiprocessing.active_children()


def test_tasks_are_drawn_as_workers_become_free():
    drawn = []
    results = run_in_processes(abs, (drawn.append(n) or n for n in itertools.count()), 2)
    for _ in range(10):
        next(results)
    assert len(drawn) <= 10 + 2 * 2
    results.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("work", "task"), [(os._exit, 9), (bytes, 2**62)])
def test_a_worker_that_dies_or_runs_out_of_memory_is_said(work, task):
    with pytest.raises(DataError, match="fewer --workers; what was finished is kept"):
        list(run_in_processes(work, [task] * 4, 2))


def test_an_interrupt_does_not_wait_for_the_work_under_way():
    threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_in_processes(time.sleep, [120] * 4, 2))
    assert time.monotonic() - begin < 20
    assert not multiprocessing.active_children()


@pytest.fixture
def job(shared, start_shard, tmp_path):
    """The real training table being packed as `sample_shards` is, caught in the middle: (process, folder)."""
    table, out = shared / "pmc_sample" / "train.csv", tmp_path / "sample" / "train"
    flags = ("--csv", table, "--out", out, "--samples-per-shard", 100, "--workers", 2)
    return lambda: start_shard(*flags), out


def wait_for(condition, seconds: float = 30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def is_packing(out):
    """Whether a worker writes or has written a shard."""
    return any(".tar" in path.name for path in out.glob("*")) if out.exists() else False


def test_workers_end_when_their_parent_is_killed(job, session_processes):
    start, out = job
    process = start()
    wait_for(lambda: is_packing(out))
    process.kill()
    process.wait()
    wait_for(lambda: not session_processes(process.pid), seconds=5)


@pytest.mark.parametrize("stop", ["Ctrl-C", "SIGTERM twice", "killed worker"])
def test_a_stopped_job_leaves_no_process_and_goes_on_with_the_rest(
    job, sample_shards, hashes, session_processes, tmp_path, stop
):
    start, out = job
    process = start()
    wait_for(lambda: is_packing(out))
    if stop == "Ctrl-C":  # a terminal sends it to all of them
        os.killpg(process.pid, signal.SIGINT)
    elif stop == "killed worker":
        workers = [pid for pid in session_processes(process.pid) if b"spawn_main" in command_line(pid)]
        os.kill(workers[0], signal.SIGKILL)
    else:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.03)  # longer, and the shards in work may be finished
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    wait_for(lambda: not session_processes(process.pid), seconds=5)
    code, message = {
        "Ctrl-C": (130, "finished shards are kept; the same command goes on with the others"),
        "SIGTERM twice": (130, "finished shards are kept; the same command goes on with the others"),
        "killed worker": (1, "a worker process was killed"),
    }[stop]
    assert (process.returncode, message in said, "Traceback" in said) == (code, True, False), said
    assert not list((tmp_path / "scratch").iterdir())
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.part.json")}
    times = {name: (out / name.replace(".part.json", ".tar")).stat().st_mtime_ns for name in finished}
    again = start()
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert hashes(out) == hashes(sample_shards / "train")
    for name, written in times.items():
        assert (out / name.replace(".part.json", ".tar")).stat().st_mtime_ns == written


def command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()
