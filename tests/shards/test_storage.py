"""Folders: writes that are all or nothing, and storage whose answers fail, are lost or never come."""

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import s3fs
from botocore.exceptions import BotoCoreError

from shards import DataError, Folder, UsageError
from shards.retry import DELAYS, TRIES, is_transient
from shards.upload import PART_BYTES, s3_options
from tests import fault_proxy
from tests.fault_proxy import every_from, faulty_s3, first, random_faults


@pytest.fixture
def remote(s3, request) -> Folder:
    """A folder of the test's own on the S3 server."""
    return Folder(f"{s3}/{request.node.name.replace('[', '-').rstrip(']')}")


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request, tmp_path) -> Folder:
    """A folder on each kind of storage."""
    if request.param == "local":
        return Folder(tmp_path / "folder")
    if request.param == "memory":
        return Folder(f"memory://{tmp_path}")
    return request.getfixturevalue("remote")


@pytest.fixture(scope="session")
def large() -> bytes:
    """One part of an upload and a bit."""
    return random.Random(0).randbytes(PART_BYTES + 12_345)


def unfinished_uploads(folder: Folder) -> list[str]:
    bucket, _, prefix = folder.address.removeprefix("s3://").partition("/")
    uploads = s3fs.S3FileSystem(skip_instance_cache=True).list_multipart_uploads(bucket)
    return [upload["Key"] for upload in uploads if upload["Key"].startswith(prefix + "/")]


def test_a_file_written_in_pieces_holds_them_all(folder, large):
    with folder.create("a.tar") as file:
        for start in range(0, len(large), 1_000_001):
            file.write(memoryview(large)[start : start + 1_000_001])
        assert folder.names() == [] or all(name.endswith(".tmp") for name in folder.names())
    assert folder.names() == ["a.tar"]
    assert folder.read("a.tar") == large


def test_folders_are_listed_apart_from_files_and_removed_when_they_are_empty(folder):
    assert folder.folders() == []
    inner = Folder(folder.locate("b"))
    for name in ("a", "c"):
        folder.write(name, b"1")
    inner.write("d", b"1")
    inner.remove_if_empty()
    assert (folder.folders(), folder.names()) == (["b"], ["a", "c"])
    inner.delete("d")
    inner.remove_if_empty()
    inner.remove_if_empty()
    assert folder.folders() == []


@pytest.mark.parametrize("size", [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1])
def test_sizes_around_a_part_of_an_upload(remote, large, size):
    remote.write("a", memoryview(large)[:size])
    assert remote.read("a") == large[:size]
    assert unfinished_uploads(remote) == []


def test_a_block_that_fails_leaves_nothing_and_the_file_before_it_stays(folder, large):
    folder.write("a", b"before")

    def fail() -> None:
        with folder.create("a") as file:
            file.write(large)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert folder.names() == ["a"]
    assert folder.read("a") == b"before"
    if folder.address.startswith("s3"):
        assert unfinished_uploads(folder) == []


def test_a_large_local_file_has_its_bytes_and_takes_no_more_room(tmp_path):
    data = os.urandom(3 * 2**20 + 5)
    with Folder(tmp_path).create("large.bin") as file:
        for start in range(0, len(data), 100_000):
            file.write(data[start : start + 100_000])
    assert (tmp_path / "large.bin").read_bytes() == data
    assert (tmp_path / "large.bin").stat().st_blocks * 512 < len(data) + 2**20


def test_a_temporary_file_tells_which_file_it_belongs_to(tmp_path):
    with Folder(tmp_path).create("set-000001.tar"):
        (temporary,) = os.listdir(tmp_path)
    assert temporary.startswith(".set-000001.tar.")
    assert temporary.endswith(".tmp")


def test_ranges_are_short_only_where_the_file_ends(folder):
    folder.write("a", bytes(range(100)))
    assert folder.read_range("a", 10, 5) == bytes(range(10, 15))
    assert folder.read_range("a", 90, 50) == bytes(range(90, 100))
    assert folder.read_range("a", 200, 5) == b""
    assert folder.read_range("a", 5, 0) == b""
    with pytest.raises(FileNotFoundError, match=r"/b: no such file"):
        folder.read_range("b", 0, 5)


def test_what_was_listed_before_is_not_believed_later(folder):
    folder.write("a", b"1")
    assert folder.names() == ["a"]
    Folder(folder.address).write("b", b"2")
    Folder(folder.address).write("a", b"longer")
    assert folder.names() == ["a", "b"]
    assert folder.read("a") == b"longer"
    folder.delete("a")
    folder.delete("a")
    assert folder.names() == ["b"]


def test_a_folder_travels_to_other_processes(folder):
    folder.write("a", b"1")
    assert pickle.loads(pickle.dumps(folder)).read("a") == b"1"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=() if fault in ("unavailable", "reset after") else pytest.mark.slow)
        for fault in fault_proxy.TRANSIENT
    ],
)
def test_transient_faults_of_every_request_are_outlasted(remote, large, fault):
    seen: set[str] = set()

    def once_each(number: int, line: str) -> str | None:
        """Every request meets the fault the first time that it is made."""
        kind = line.split("&uploadId")[0]
        if kind in seen:
            return None
        seen.add(kind)
        return fault

    with faulty_s3(once_each) as proxy:
        folder = Folder(remote.address)
        folder.abort_uploads(["large"])
        folder.write("small", b"small")
        folder.write("large", large)
        assert folder.read("small") == b"small"
        assert folder.read_range("large", 5_000_000, 3_000_000) == large[5_000_000:8_000_000]
        assert folder.names() == ["large", "small"]
        folder.delete("small")
        methods = {line.split()[0] for line, met in proxy.met if met}
    assert methods >= {"PUT", "POST", "GET", "DELETE"}
    assert remote.names() == ["large"]
    assert remote.read("large") == large
    assert unfinished_uploads(remote) == []


def completes_upload(line: str) -> bool:
    return line.startswith("POST") and "uploadId=" in line


@pytest.mark.parametrize("then", [[], [fault_proxy.GONE]])
def test_an_upload_whose_completion_was_not_answered_is_there_once(remote, large, then):
    """Told again to complete it, some servers answer as before, others know no such upload any more."""
    with faulty_s3(first([fault_proxy.RESET_AFTER, *then], completes_upload)) as proxy:
        Folder(remote.address).write("a", large)
        assert proxy.faults()[fault_proxy.RESET_AFTER] == 1
    assert remote.read("a") == large
    assert unfinished_uploads(remote) == []


def test_an_upload_that_another_removed_is_an_error(remote, large):
    remote.write("a", large[:10])
    with (
        faulty_s3(first([fault_proxy.GONE], completes_upload)),
        pytest.raises(DataError, match=r"/a: writing failed: The specified upload does not exist"),
    ):
        Folder(remote.address).write("a", large)
    assert remote.read("a") == large[:10]
    assert unfinished_uploads(remote) == []


def test_answers_with_too_few_bytes_are_noticed(remote):
    remote.write("a", bytes(1000))
    with faulty_s3(first([fault_proxy.SHORT] * 2, lambda line: line.startswith("GET"))) as proxy:
        assert Folder(remote.address).read_range("a", 100, 800) == bytes(800)
        assert proxy.faults()[fault_proxy.SHORT] == 2


def test_refusals_are_said_at_once(remote):
    with faulty_s3(every_from(0, fault_proxy.DENIED)) as proxy:
        folder = Folder(remote.address)
        for work, requests in (
            (lambda: folder.write("a", b"1"), 1),
            (lambda: folder.read_range("a", 0, 1), 2),  # s3fs is asked too before it is believed
            (folder.names, 1),
        ):
            asked = len(proxy.met)
            with pytest.raises(DataError, match=rf"^{folder.address}/.*failed: .*(Access Denied|Forbidden)"):
                work()
            assert len(proxy.met) == asked + requests


def test_credentials_that_expired_or_are_missing_are_told_as_such(remote, monkeypatch, tmp_path):
    remedy = "; check the credentials in use and what they may do here$"
    with faulty_s3(every_from(0, fault_proxy.EXPIRED)):
        folder = Folder(remote.address)
        for work in (
            lambda: folder.read("a"),
            lambda: folder.read_range("a", 0, 1),
            lambda: folder.size("a"),
            folder.names,
        ):
            with pytest.raises(DataError, match=f"failed: .*(token has expired.|Bad Request){remedy}"):
                work()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with faulty_s3(), pytest.raises(DataError, match=f"Unable to locate credentials{remedy}"):
        Folder(remote.address).read("a")


def test_a_missing_bucket_is_said_at_once(s3):
    folder = Folder("s3://nosuchbucket/set")
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"s3://nosuchbucket/set/a: writing failed: .*bucket does not exist"):
        folder.write("a", b"1")
    with pytest.raises(UsageError, match=r"s3://nosuchbucket/set: there is no such bucket at http://127"):
        folder.read("a")
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    ("endpoint", "transient"),
    [("http://127.0.0.1:1", True), ("http://storage.invalid", True), ("not an address", False)],
)
def test_a_server_that_is_not_there_may_come_back_and_a_wrong_address_may_not(endpoint, transient):
    storage = s3fs.S3FileSystem(
        key="k", secret="s", endpoint_url=endpoint, skip_instance_cache=True, **s3_options()
    )
    storage.retries = 1
    with pytest.raises((OSError, ValueError, BotoCoreError)) as raised:
        storage.ls("bucket")
    assert is_transient(raised.value) is transient


def test_random_faults_among_threads(remote, large):
    with faulty_s3(random_faults(seed=5)) as proxy:
        folder = Folder(remote.address)
        contents = {f"{n}": large[n * 1000 : n * 2500] for n in range(1, 13)}
        threads = [threading.Thread(target=folder.write, args=item) for item in contents.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {name: folder.read(name) for name in folder.names()} == contents
        assert proxy.faults().total() > 5


@pytest.mark.parametrize(
    ("fault", "trouble", "requests"),
    [
        (fault_proxy.UNAVAILABLE, "Please reduce your request rate.", 1),
        (fault_proxy.RESET_BEFORE, "Could not connect", 2),  # aiohttp asks at once again
    ],
)
def test_an_outage_ends_with_one_message_that_says_what_to_do(remote, monkeypatch, fault, trouble, requests):
    monkeypatch.setattr("shards.retry.DELAYS", (0.01,) * len(DELAYS))
    with faulty_s3(every_from(0, fault)) as proxy:
        with pytest.raises(DataError) as raised:
            Folder(remote.address).write("a", b"1")
        assert len(proxy.met) == TRIES * requests  # no other layer tries again by itself
    assert trouble in str(raised.value)
    assert str(raised.value).startswith(f"{remote.address}/a: writing failed after {TRIES} tries: ")
    assert str(raised.value).endswith(
        "; what was finished is kept: run the same command again when the storage answers"
    )


@pytest.mark.slow
def test_a_connection_that_hangs_is_given_up_and_made_again(remote):
    remote.write("a", b"1")
    with faulty_s3(first([fault_proxy.HANG])) as proxy:
        assert Folder(remote.address).read_range("a", 0, 1) == b"1"
        assert proxy.faults()[fault_proxy.HANG] == 1


def test_what_a_killed_upload_left_is_removed_and_nothing_else(remote):
    code = f"""
import time
from shards import Folder
with Folder({remote.address!r}).create("a") as a, Folder({remote.address!r}).create("ab") as other:
    a.write(bytes({PART_BYTES}))
    other.write(bytes({PART_BYTES}))
    print("begun", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGKILL)
    assert remote.names() == []
    prefix = remote.address.removeprefix("s3://bucket/")
    assert sorted(unfinished_uploads(remote)) == [f"{prefix}/a", f"{prefix}/ab"]
    remote.abort_uploads(["a", "b"])
    assert unfinished_uploads(remote) == [f"{prefix}/ab"]
    remote.abort_uploads(["ab"])
    assert unfinished_uploads(remote) == []
