"""Jobs of `pipeline.shard` that are killed at any moment, alone, beside other tasks, and while they replace
another data set: what reruns make of it is what an undisturbed job writes, to the byte, and nothing else.
"""

import contextlib
import itertools
import math
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

SPLIT = ("--split", "train=0.6,valid=0.4", "--drop-duplicates")


@pytest.fixture(scope="module")
def table(tmp_path_factory, picture, write_table) -> Path:
    """A table of 240 rows, four figures of each of 60 articles, of which two are the same image."""
    folder = tmp_path_factory.mktemp("articles")
    rows = []
    for article in range(60):
        for figure in range(4):
            name = f"PMC{article}_{figure}.png"
            (folder / name).write_bytes(picture(article, size=(20, 20 + figure // 2)))
            rows.append({"image": name, "caption": f"figure {figure} of {article}"})
    return write_table(folder, rows)


@pytest.fixture(scope="module")
def flags(table) -> tuple[object, ...]:
    return "--csv", table, "--samples-per-shard", 6, "--workers", 2, *SPLIT


@pytest.fixture(scope="module")
def undisturbed_job(flags, launch, hashes, tmp_path_factory) -> tuple[dict[str, str], int]:
    """What an undisturbed job writes (every file and a hash of its bytes), and how many files come and go in
    its output while it runs.
    """
    launcher, environment = launch
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    job = subprocess.Popen([*launcher(1, "shard"), *map(str, flags), "--out", str(out)], env=environment())
    changes = kill_after(math.inf, job, out)
    assert job.returncode == 0
    return hashes(out), changes


@pytest.fixture
def undisturbed(undisturbed_job) -> dict[str, str]:
    return undisturbed_job[0]


@pytest.fixture
def all_changes(undisturbed_job) -> int:
    return undisturbed_job[1]


def files(out: Path) -> set[tuple[str, int]]:
    """Every file that is below a folder now, and when it was written."""
    found = set()
    for path in out.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it went in the meantime
            found.add((str(path), path.stat().st_mtime_ns))
    return found


def kill_after(changes: float, job: "subprocess.Popen[Any]", out: Path) -> int:
    """Kill a job once so many files have come and gone in its output; how many had, at the end of the job if
    that came first.
    """
    before, seen = files(out), 0
    while job.poll() is None and seen < changes:
        time.sleep(0.001)
        now = files(out)
        seen += len(now ^ before)
        before = now
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    return seen


def moments(kills: int) -> list[float]:
    """Shares of a job, from all over it, in any order."""
    chance = random.Random(kills)
    return [(number + chance.random()) / kills for number in chance.sample(range(kills), kills)]


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_jobs_end_with_the_same_bytes_and_no_stray_files(
    run, flags, start_shard, all_changes, undisturbed, hashes, tmp_path, kills
):
    shares = iter(moments(kills))
    killed = 0
    for number in range(0, kills, 4):
        out = tmp_path / str(number) / "set"
        done = 0
        for share in itertools.islice(shares, 4):
            job = start_shard(*flags, "--out", out)
            done += kill_after(share * (all_changes - done), job, out)
            killed += job.returncode == -signal.SIGKILL
        last = run("shard", *flags, "--out", out)
        assert last.returncode == 0, last.stderr
        assert hashes(out) == undisturbed
    assert killed >= kills / 2
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_task_killed_beside_another_is_made_up_for_by_its_rerun(
    run, flags, start_shard, all_changes, undisturbed, hashes, tmp_path, kills
):
    for number, share in enumerate(moments(kills)):
        out = tmp_path / str(number) / "set"
        for _ in range(2):  # the hashes, then the shards
            tasks = [start_shard(*flags, "--out", out, "--task", f"{index}/2") for index in range(2)]
            kill_after(share * all_changes, tasks[number % 2], out)
            assert tasks[1 - number % 2].wait(60) == 0, tasks[1 - number % 2].communicate()
            last = run("shard", *flags, "--out", out, "--task", f"{number % 2}/2")
            assert last.returncode == 0, last.stderr
        assert hashes(out) == undisturbed


@pytest.mark.parametrize("kills", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_a_killed_overwrite_never_mixes_the_old_with_the_new(
    run, flags, table, picture, start_shard, all_changes, undisturbed, hashes, tmp_path, kills
):
    """The old job has the same rows and options, but other images: nothing but its bytes would tell."""
    old_images = tmp_path / "old"
    old_images.mkdir()
    for number, path in enumerate(sorted(table.parent.glob("*.png"))):
        (old_images / path.name).write_bytes(picture(number // 2 + 7, size=(30, 30)))
    shutil.copy(table, old_images)
    begun = tmp_path / "begun" / "set"
    old = ("--csv", old_images / table.name, *flags[2:], "--out", begun)
    assert run("shard", *old, "--max-rejected", "40%").returncode == 1
    to_remove = len(files(begun))
    for number, share in enumerate(moments(kills)):
        out = tmp_path / str(number) / "set"
        shutil.copytree(begun, out)
        changes = share * (to_remove + all_changes if number % 4 else to_remove)
        kill_after(changes, start_shard(*flags, "--overwrite", "--out", out), out)
        # Killed before it touched anything, it has left the old job to go on with.
        way = ("--overwrite",) if number % 2 or hashes(out) == hashes(begun) else ()
        last = run("shard", *flags, *way, "--out", out)
        if last.returncode == 2:
            assert "an earlier --overwrite was interrupted" in last.stderr
            assert run("shard", *flags, "--overwrite", "--out", out).returncode == 0
        assert hashes(out) == undisturbed
