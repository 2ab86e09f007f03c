"""`pipeline.stream` over S3 that fails: the same keys and pixels, or one message and a quick end."""

import re
from collections import Counter

import pytest

from shards import Folder, open_dataset, write_manifest, write_shard
from tests import fault_proxy
from tests.fault_proxy import faulty_s3, spread

KINDS = (
    *fault_proxy.TRANSIENT,
    fault_proxy.THROTTLED,
    fault_proxy.SHORT,
    fault_proxy.STALL,
    fault_proxy.CORRUPT,
)
FAULTS = 100


def is_shard(line: str) -> bool:
    return line.startswith("GET") and ".tar" in line


@pytest.fixture(scope="module")
def address(sample_shards, s3) -> str:
    """The real sample on S3, in shards of 4 samples."""
    dataset, folder = open_dataset(str(sample_shards / "train")), Folder(f"{s3}/stream-faults/train")
    samples = [dataset.read_sample(number) for number in range(len(dataset))]
    written = [
        write_shard(
            folder,
            f"d-{first:06d}.tar",
            ((sample.key, sample.members) for sample in samples[first : first + 4]),
        )
        for first in range(0, len(samples), 4)
    ]
    write_manifest(folder, written, {})
    return folder.address


@pytest.fixture
def impatient(monkeypatch):
    """A storage that says nothing is given up after a second."""
    monkeypatch.setattr("shards.object_reads.STALL_SECONDS", 1)


@pytest.fixture
def epoch(run, address, tmp_path):
    """Run one epoch: what the command did, and the lines that it wrote to `--keys`."""

    def run_epoch(*flags: object):
        keys = tmp_path / "keys.tsv"
        done = run("stream", "--data", address, "--keys", keys, "--checksums", "--image-size", 64, *flags)
        return done, keys.read_text().splitlines() if keys.exists() else []

    return run_epoch


def test_a_hundred_faults_of_every_kind_change_neither_keys_nor_pixels(epoch, impatient):
    done, undisturbed = epoch()
    assert (done.returncode, len(undisturbed)) == (0, 256)
    with faulty_s3(spread(FAULTS, KINDS, is_shard)) as proxy:
        done, disturbed = epoch()
        assert proxy.faults() == dict.fromkeys(KINDS, FAULTS // len(KINDS))
    assert (done.returncode, disturbed) == (0, undisturbed), done.stderr


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            fault_proxy.DENIED,
            r"error: s3://\S+/d-\d+\.tar: reading bytes .* failed: .*(Access Denied|Forbidden).*",
        ),
        (
            fault_proxy.GONE,
            r"error: s3://\S+/d-\d+\.tar: the manifest lists this shard, but it is not there; .*",
        ),
    ],
)
def test_what_cannot_heal_ends_at_once_with_one_message(epoch, fault, said):
    asked: list[str] = []

    def deny(_: int, line: str) -> str | None:
        if not is_shard(line):
            return None
        asked.append(line)
        return fault

    with faulty_s3(deny):
        done, _ = epoch()
    assert max(Counter(asked).values()) <= 2  # obstore's one try, and where that is refused, s3fs's
    assert done.returncode == 1
    assert re.fullmatch(said, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


def test_a_shard_that_was_replaced_is_said_at_once(epoch, address):
    folder = Folder(address)
    before = folder.read("d-000100.tar")
    folder.write("d-000100.tar", before + bytes(10_240))
    try:
        done, _ = epoch()
    finally:
        folder.write("d-000100.tar", before)
    assert done.returncode == 1
    assert "d-000100.tar: changed since the manifest was written" in done.stderr.splitlines()[-1]
