"""`pipeline.shard` to S3 that fails or refuses, and killed jobs: nothing lost, nothing doubled."""

import csv
import itertools
import os
import random
import signal
import subprocess
import time

import pytest
import s3fs
from PIL import Image

from pipeline.sharding.job_folder import JobFolder
from shards import DataError, Folder, UsageError
from tests import fault_proxy
from tests.fault_proxy import Schedule, every_from, faulty_s3, random_faults


@pytest.fixture(scope="session")
def flags(tmp_path_factory) -> tuple[object, ...]:
    """A job of two splits and 7 shards: small figures and two so large that their shards are uploaded in
    parts.
    """
    folder = tmp_path_factory.mktemp("table")
    with open(folder / "train.csv", "w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["image", "caption"])
        for number in range(30):
            size = (2450, 2450) if number < 2 else (20, 20)
            pixels = random.Random(number).randbytes(3 * size[0] * size[1])
            name = f"PMC{number}.png"
            Image.frombytes("RGB", size, pixels).save(folder / name, compress_level=0)
            rows.writerow([name, f"caption {number}"])
        rows.writerow([name, "again"])
    split = ("--split", "train=0.6,valid=0.4", "--drop-duplicates")
    return "--csv", folder / "train.csv", *split, "--samples-per-shard", 5, "--workers", 2


@pytest.fixture(scope="session")
def undisturbed(flags, launch, tmp_path_factory) -> dict[str, bytes]:
    """What an undisturbed job writes: the bytes of every file."""
    launcher, environment = launch
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    done = subprocess.run(
        [*launcher(1, "shard"), *map(str, flags), "--out", str(out)],
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def out(s3, request) -> str:
    """The address of an output folder of the test's own; every one is called `set`."""
    return f"{s3}/{request.node.name.translate(str.maketrans('[]', '--'))}/set"


@pytest.fixture
def start_job(start, flags):
    """`start_job(out)`: the job as a process, leader of a session."""
    return lambda out: start("shard", *flags, "--out", out)


def objects(out: str) -> dict[str, bytes]:
    """Everything that lies below an address, by the name relative to it."""
    storage, root = s3fs.S3FileSystem(skip_instance_cache=True), out.removeprefix("s3://")
    return {path.removeprefix(root + "/"): storage.cat_file(path) for path in storage.find(root)}


def unfinished_uploads(out: str) -> list[str]:
    bucket, _, prefix = out.removeprefix("s3://").partition("/")
    uploads = s3fs.S3FileSystem(skip_instance_cache=True).list_multipart_uploads(bucket)
    return [upload["Key"] for upload in uploads if upload["Key"].startswith(prefix)]


def assert_same(out: str, undisturbed: dict[str, bytes]) -> None:
    there = objects(out)
    assert sorted(there) == sorted(undisturbed)
    assert [name for name in there if there[name] != undisturbed[name]] == []
    assert unfinished_uploads(out) == []


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4))])
def test_transient_faults_of_every_kind_change_nothing(run, flags, out, undisturbed, seed):
    with faulty_s3(random_faults(seed)) as proxy:
        done = run("shard", *flags, "--out", out)
        assert set(proxy.faults()) == set(fault_proxy.TRANSIENT)
        assert any("partNumber" in line for line, _ in proxy.met)
    assert done.returncode == 0, done.stderr
    assert_same(out, undisturbed)


OUTAGES = [
    (every_from(14, fault_proxy.DENIED), "failed: Access Denied"),
    pytest.param(every_from(20, fault_proxy.UNAVAILABLE), "failed after 6 tries", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("outage", "message"), OUTAGES, ids=["denied", "unavailable"])
def test_permanent_failure_is_one_message_and_the_same_command_finishes(
    run, flags, out, undisturbed, outage: Schedule, message: str
):
    with faulty_s3(outage):
        failed = run("shard", *flags, "--out", out)
    assert failed.returncode == 1, failed.stderr
    errors = [line for line in failed.stderr.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {out}")
    assert message in errors[0]
    assert "Traceback" not in failed.stderr
    assert not [name for name in objects(out) if name.endswith("manifest.json")]
    done = run("shard", *flags, "--out", out)
    assert done.returncode == 0, done.stderr
    assert_same(out, undisturbed)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_jobs_end_with_the_same_objects_and_no_strays(start_job, run, flags, out, undisturbed, kills):
    moments = random.Random(kills)
    killed = 0
    for _ in range(kills):
        with faulty_s3(lambda number, line: None) as proxy:
            job = start_job(out)
            requests = moments.randrange(1, 45)
            while len(proxy.met) < requests and job.poll() is None:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.05))
            killed += job.poll() is None
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    assert killed > 0
    done = run("shard", *flags, "--out", out)
    assert done.returncode == 0, done.stderr
    assert_same(out, undisturbed)


def test_unfinished_uploads_of_every_file_of_the_job_are_removed(run, flags, out, undisturbed):
    """Such as those of an index of many samples, or of workers that died while others went on."""
    storage = s3fs.S3FileSystem(skip_instance_cache=True)
    bucket, _, prefix = out.removeprefix("s3://").partition("/")
    for name in ("train/train-000001.tar", "train/index.bin", "valid/checksums.bin", "rejected.csv"):
        storage.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{prefix}/{name}")
    for index in (0, 1, 0, 1):
        done = run("shard", *flags, "--out", out, "--task", f"{index}/2")
        assert done.returncode == 0, done.stderr
    assert_same(out, undisturbed)


def test_an_overwrite_that_ends_in_the_middle_is_never_taken_for_a_job(s3):
    """Of what it has not removed yet nothing becomes a part of a new job with the same options."""
    job = JobFolder(Folder(f"{s3}/middle/set"), ("train", "valid"))
    identity = {"seed": 1, "split": "train=0.6,valid=0.4"}
    job.claim(identity, overwrite=False)
    for folder in job.data_sets:
        for number in range(20):
            folder.write(f"{folder.name}-{number:06d}.tar", b"old")
            folder.write(f"{folder.name}-{number:06d}.part.json", b"old")
    deleted = itertools.count()
    with (
        faulty_s3(lambda _, line: fault_proxy.DENIED if "DELETE" in line and next(deleted) > 25 else None),
        pytest.raises(DataError, match="deleting failed"),
    ):
        JobFolder(job.root).claim({"seed": 1}, overwrite=True)
    assert any(folder.names() for folder in job.data_sets)
    for splits in ((), ("train", "valid")):
        with pytest.raises(UsageError, match="an earlier --overwrite was interrupted"):
            JobFolder(job.root, splits).claim(identity, overwrite=False)
    JobFolder(job.root).claim({"seed": 1}, overwrite=True)
    assert list(objects(job.root.address)) == ["plan.json"]
    JobFolder(job.root).claim({"seed": 1}, overwrite=False)
