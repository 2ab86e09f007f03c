"""Training onto a disk that fills up: it goes on as long as it can, and never loses what was saved."""

import subprocess
from pathlib import Path

import pytest

from pipeline.checkpointing.newest import newest_whole
from shards import Folder


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system in memory that has room for two checkpoints of the tiny model, not three."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=44m", "tmpfs", place]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def flags(sample_shards, small_disk) -> list[object]:
    flags = ["--train-data", sample_shards / "train", "--model", "tiny", "--global-batch-size", 24]
    flags += ["--epochs", 5, "--log-every", 1, "--save-every", 2, "--seed", 1, "--keep-last", 1]
    return [*flags, "--logs", small_disk, "--name", "run", "--resume", "auto"]


def test_a_full_disk_costs_no_step_and_no_checkpoint_and_is_told_at_the_end(run, flags, small_disk):
    checkpoints = Folder(small_disk / "run" / "checkpoints")
    assert run("train", *flags, "--steps", 2).returncode == 0
    size = checkpoints.size("step-00000002.pt")
    filler = small_disk / "filler"
    room = 44 * 2**20 - size - size // 2
    filler.write_bytes(bytes(room))
    full = run("train", *flags, "--steps", 6)
    assert full.returncode == 1, full.stderr
    assert "warning: the checkpoint of step 4 could not be written" in full.stderr
    assert "No space left on device; the run goes on, and earlier checkpoints stay" in full.stderr
    assert "error: the checkpoint of step 6 could not be written" in full.stderr
    assert "make room and start the same command with --resume auto" in full.stderr
    assert newest_whole(checkpoints).address == checkpoints.locate("step-00000002.pt")
    assert [name for name in checkpoints.names() if name.endswith(".tmp")] == []
    filler.unlink()
    done = run("train", *flags, "--steps", 6)
    assert done.returncode == 0, done.stderr
    assert newest_whole(checkpoints).address == checkpoints.locate("step-00000006.pt")
