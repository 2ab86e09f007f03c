"""The disk cache: what it keeps, for whom it makes way, and its bound whatever happens to its users."""

import fcntl
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from shards import UsageError
from shards.cache_space import CacheSpace
from shards.disk_cache import DiskCache

BLOCK = 10_000
ON_DISK = 12_288  # what a block and its checksum take


def block(key: str, length: int = BLOCK) -> memoryview:
    """The right content of a block."""
    return memoryview(random.Random(key).randbytes(length))


def fill(cache: DiskCache, keys) -> None:
    for key in keys:
        cache.put(key, block(key))


def held(cache: DiskCache, keys) -> list[str]:
    """Those of the keys whose blocks are there, as they should be."""
    found = {key: cache.get(key, BLOCK) for key in keys}
    assert all(data in (None, block(key)) for key, data in found.items())
    return [key for key, data in found.items() if data is not None]


def files(folder, ending="") -> list:
    """The files of blocks."""
    return [path for path in folder.glob(f"*/*{ending}") if path.name != "in-use"]


def bytes_in(folder) -> int:
    """The bytes of all files at one moment: those who would change them wait."""
    with open(folder / "accounts", "rb") as accounts:
        fcntl.flock(accounts, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def running(code: str, *arguments: object):
    """A process that runs the code, killed at the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_block_is_read_once_by_all_who_use_the_folder(tmp_path):
    reads = []

    def read() -> memoryview:
        reads.append(1)
        return block("a/1")

    with DiskCache(tmp_path, 10**6) as cache, DiskCache(tmp_path, 10**6) as other:
        for user in (cache, other, cache):
            assert user.get_or_read("a/1", BLOCK, read) == block("a/1")
        assert (cache.stats.hits, cache.stats.misses, other.stats.hits) == (1, 1, 1)
    with DiskCache(tmp_path, 10**6) as later:
        assert later.get_or_read("a/1", BLOCK, read) == block("a/1")
    assert len(reads) == 1


@pytest.mark.parametrize("damage", ["changed", "cut short", "longer", "empty", "of another block"])
def test_a_damaged_file_is_noticed_and_replaced(tmp_path, damage):
    with DiskCache(tmp_path, 10**6) as cache:
        cache.put("a/1", block("a/1"))
        (path,) = files(tmp_path)
        content = bytearray(path.read_bytes())
        if damage == "changed":
            content[5_000] ^= 1
        elif damage == "of another block":
            cache.put("a/2", block("a/2"))
            (other,) = set(files(tmp_path)) - {path}
            content = bytearray(other.read_bytes())
        else:
            content = {"cut short": content[:-1], "longer": content + b"\0", "empty": bytearray()}[damage]
        path.write_bytes(content)
        assert cache.get("a/1", BLOCK) is None
        assert cache.stats.damaged == 1
        assert cache.get_or_read("a/1", BLOCK, lambda: block("a/1")) == block("a/1")
        assert cache.get("a/1", BLOCK) == block("a/1")


def test_a_removed_block_is_gone_and_its_room_free(tmp_path):
    with DiskCache(tmp_path, 4096 + 2 * ON_DISK) as cache:
        fill(cache, ["a/1", "a/2"])
        cache.remove("a/1")
        fill(cache, ["a/3"])
        assert held(cache, ["a/1", "a/2", "a/3"]) == ["a/2", "a/3"]


def test_a_data_set_in_use_keeps_its_first_blocks_and_the_bound_holds(tmp_path):
    keys = [f"a/{n}" for n in range(20)]
    with DiskCache(tmp_path, 10 * ON_DISK) as cache:
        for _ in range(3):
            for key in keys:
                cache.get_or_read(key, BLOCK, lambda key=key: block(key))
                assert bytes_in(tmp_path) <= 10 * ON_DISK
        assert held(cache, keys) == keys[:9]
        assert cache.stats.hits == 3 * 9


def test_data_sets_no_longer_in_use_make_way_least_recently_used_blocks_first(tmp_path):
    old, new = [f"old/{n}" for n in range(20)], [f"new/{n}" for n in range(3)]
    with DiskCache(tmp_path, 4096 + 20 * ON_DISK) as cache:
        fill(cache, old)
        for age, path in enumerate(sorted(files(tmp_path))):
            os.utime(path, (age, age))
        recent = held(cache, old[:15])
    with DiskCache(tmp_path, 4096 + 20 * ON_DISK) as cache:
        fill(cache, new)
        assert held(cache, new) == new
        assert bytes_in(tmp_path) <= 4096 + 20 * ON_DISK
        assert set(held(cache, old)) >= set(recent)


def test_another_process_that_uses_a_data_set_keeps_it_from_eviction_until_it_is_killed(tmp_path):
    code = """
import sys, time
from shards.disk_cache import DiskCache
cache = DiskCache(sys.argv[1], int(sys.argv[2]))
assert cache.get("old/0", 10_000) is not None
print("reads", flush=True)
time.sleep(60)
"""
    bound = 4096 + 3 * ON_DISK
    with DiskCache(tmp_path, bound) as cache:
        fill(cache, ["old/0", "old/1", "old/2"])
    with running(code, tmp_path, bound) as process:
        assert process.stdout.readline() == "reads\n"
        with DiskCache(tmp_path, bound) as cache:
            fill(cache, ["new/1"])
            assert held(cache, ["new/1"]) == []
        process.send_signal(signal.SIGKILL)
        process.wait()
    with DiskCache(tmp_path, bound) as cache:
        fill(cache, ["new/1"])
        assert held(cache, ["new/1"]) == ["new/1"]


def test_a_smaller_bound_holds_from_the_start(tmp_path):
    with DiskCache(tmp_path, 10**6) as cache:
        fill(cache, [f"a/{n}" for n in range(20)])
    DiskCache(tmp_path, 5 * ON_DISK).close()
    assert bytes_in(tmp_path) <= 5 * ON_DISK


def test_what_a_writer_killed_in_the_middle_left_is_removed(tmp_path):
    code = """
import sys, time
from pathlib import Path
from shards.cache_space import CacheSpace
folder = Path(sys.argv[1])
space = CacheSpace(folder, 10**6)
space.mark_used(folder / "a")
assert space.create(folder / "a" / "1", 10_000) is not None
print("begun", flush=True)
time.sleep(60)
"""
    with running(code, tmp_path) as process:
        assert process.stdout.readline() == "begun\n"
        with DiskCache(tmp_path, 10**6):
            assert [path.stat().st_size for path in files(tmp_path, ".part")] == [10_000]  # it is alive
        process.send_signal(signal.SIGKILL)
        process.wait()
    with DiskCache(tmp_path, 4096 + ON_DISK) as cache:
        assert files(tmp_path) == []
        fill(cache, ["b/1"])
        assert held(cache, ["b/1"]) == ["b/1"]


def test_lost_accounts_are_made_anew(tmp_path):
    with DiskCache(tmp_path, 4096 + 3 * ON_DISK) as cache:
        fill(cache, ["a/1", "a/2"])
        (tmp_path / "accounts").unlink()
        fill(cache, ["a/3", "a/4"])
        assert held(cache, ["a/1", "a/2", "a/3", "a/4"]) == ["a/1", "a/2", "a/3"]


@contextmanager
def disk_that_takes(size: int):
    """Inside, no file can grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_said_once_and_reading_goes_on(tmp_path, capfd):
    with DiskCache(tmp_path, 10**6) as cache:
        cache.put("a/1", block("a/1"))
        with disk_that_takes(5_000):
            for key in ("a/2", "a/3"):
                assert cache.get_or_read(key, BLOCK, lambda key=key: block(key)) == block(key)
        assert capfd.readouterr().err == f"{tmp_path}: no more blocks are cached: [Errno 27] File too large\n"
        assert held(cache, ["a/1", "a/2", "a/3"]) == ["a/1"]
        assert len(files(tmp_path)) == 1


def test_a_block_larger_than_the_whole_cache_is_said_once(tmp_path, capfd):
    with DiskCache(tmp_path, 8_000) as cache:
        for key in ("a/1", "a/2"):
            assert cache.get_or_read(key, BLOCK, lambda key=key: block(key)) == block(key)
    why = "a block of 10,000 bytes is larger than the whole cache may be"
    assert capfd.readouterr().err == f"{tmp_path}: no more blocks are cached: {why}\n"
    assert files(tmp_path) == []


def test_a_new_file_is_locked_until_it_is_removed(tmp_path, monkeypatch):
    space = CacheSpace(tmp_path, 10**6)
    (tmp_path / "a").mkdir()
    descriptor = space.create(tmp_path / "a" / "1", BLOCK)
    was_locked = []
    unlink = Path.unlink

    def look_and_unlink(path: Path, missing_ok: bool = False) -> None:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                was_locked.append(False)
            except BlockingIOError:
                was_locked.append(True)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", look_and_unlink)
    space.discard(tmp_path / "a" / "1", descriptor)
    assert was_locked == [True]
    assert files(tmp_path) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    space.close()


def test_a_file_that_cannot_get_its_name_is_let_go_and_made_again(tmp_path, monkeypatch, capfd):
    def refuse(*names: object) -> None:
        raise OSError("no such luck")

    with DiskCache(tmp_path, 4096 + ON_DISK) as cache:
        cache.get("a/1", BLOCK)
        descriptors = os.listdir("/proc/self/fd")
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", refuse)
            cache.put("a/1", block("a/1"))
        assert os.listdir("/proc/self/fd") == descriptors
        assert "no more blocks are cached: no such luck" in capfd.readouterr().err
        with DiskCache(tmp_path, 4096 + ON_DISK) as other:  # there is room for one
            other.put("a/1", block("a/1"))
            assert held(other, ["a/1"]) == ["a/1"]


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: no cache can be here: .*; give a folder on a local disk"):
        DiskCache(tmp_path / "file", 10**6)


HAMMER = """
import random, sys
from shards.disk_cache import DiskCache
folder, bound, data_set, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
chance = random.Random(seed)
cache = DiskCache(folder, bound)
print("begun", flush=True)
while True:
    key = f"{data_set}/{chance.randrange(60)}"
    right = memoryview(random.Random(key).randbytes(10_000 + 1_000 * len(key)))
    assert cache.get_or_read(key, len(right), lambda: right) == right
    assert cache.stats.damaged == 0
    if chance.random() < 0.05:
        cache.remove(key)
"""


def hammer(folder, seconds: float, processes: int) -> None:
    """Processes use one small cache and are killed at random moments, and its bound holds all the time."""
    bound, chance = 50 * ON_DISK, random.Random(1)
    begun = 0

    def start() -> subprocess.Popen:
        nonlocal begun
        begun += 1
        command = [sys.executable, "-c", HAMMER, folder, bound, chance.choice("abcd"), begun]
        return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)

    DiskCache(folder, bound).close()
    users = [start() for _ in range(processes)]
    largest = 0
    try:
        for user in users:
            assert user.stdout.readline() == "begun\n"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for _ in range(10):
                largest = max(largest, bytes_in(folder))
                time.sleep(chance.uniform(0, 0.02))
            victim = chance.randrange(processes)
            assert users[victim].poll() is None  # no check of its own has failed
            users[victim].kill()
            users[victim].wait()
            users[victim] = start()
            assert users[victim].stdout.readline() == "begun\n"
    finally:
        for user in users:
            user.kill()
            user.communicate()
    assert 0.5 * bound < largest <= bound
    with DiskCache(folder, bound) as cache:
        assert bytes_in(folder) <= bound
        assert files(folder, ".part") == []
        assert len(files(folder)) > 10
        keys = [f"{data_set}/{n}" for data_set in "abcd" for n in range(60)]
        found = [key for key in keys if cache.get(key, 10_000 + 1_000 * len(key)) is not None]
        assert len(found) == len(files(folder))
        assert cache.stats.damaged == 0


def test_processes_killed_at_random_leave_the_cache_within_its_bound_and_right(tmp_path):
    hammer(tmp_path / "cache", seconds=2.0, processes=3)


@pytest.mark.slow
def test_many_processes_killed_at_random_leave_the_cache_within_its_bound_and_right(tmp_path):
    hammer(tmp_path / "cache", seconds=12.0, processes=6)
