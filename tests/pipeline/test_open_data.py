"""Tars that nobody has described train by their address: described once, and never out of date."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import s3fs

from pipeline.indexing.job import index_shards
from pipeline.open_data import open_data
from pipeline.topology import Topology
from shards import DataError, Dataset, MemberNames, UsageError
from shards.tar import END_OF_ARCHIVE, pack_sample
from tests.hub_server import HubServer

ALONE = Topology()


def tar_bytes(*keys: str, extension: str = "jpg") -> bytes:
    samples = (
        pack_sample(key, {extension: key.encode() * 50, "txt": f"figure {key}".encode()}) for key in keys
    )
    return b"".join(samples) + END_OF_ARCHIVE


def keys(dataset: Dataset) -> list[str]:
    return [dataset.read_sample(number).key for number in range(len(dataset))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache; two cores at most are used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tars(tmp_path) -> Path:
    """Tars 00.tar, 01.tar and 02.tar of two samples each, in a folder that holds nothing else."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number:02d}.tar").write_bytes(tar_bytes(f"{number}a", f"{number}b"))
    return folder


def test_address_with_braces_is_described_once_and_the_tars_folder_is_left_alone(tars, cache, capfd):
    address = f"{tars}/{{00..02}}.tar"
    first = open_data(address, ALONE)
    assert keys(first) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    said = capfd.readouterr().err
    assert "no manifest; 3 shards" in said
    assert str(cache) in said
    again = open_data(address, ALONE)
    assert (keys(again), again.manifest) == (keys(first), first.manifest)
    assert capfd.readouterr().err == ""
    assert sorted(path.name for path in tars.iterdir()) == ["00.tar", "01.tar", "02.tar"]


def test_fingerprint_is_that_of_pipeline_index(tars, run):
    kept = open_data(f"{tars}/*.tar", ALONE).manifest.fingerprint
    assert run("index", "--shards", tars, "--workers", "1").returncode == 0
    assert open_data(str(tars), ALONE).manifest.fingerprint == kept


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tars/01.tar", ["1a", "1b"]),
        ("tars/{02,00}.tar", ["2a", "2b", "0a", "0b"]),
        ("tars/00.tar::tars/0[2-9].tar", ["0a", "0b", "2a", "2b"]),
        ("file://tars/{00..01}.tar", ["0a", "0b", "1a", "1b"]),
    ],
)
def test_tars_are_those_that_the_address_names_seen_from_the_working_folder(
    tars, tmp_path, monkeypatch, address, expected
):
    monkeypatch.chdir(tmp_path)
    dataset = open_data(address, ALONE)
    monkeypatch.chdir(tars)
    assert keys(dataset) == expected


def test_manifest_that_lists_exactly_these_tars_is_used(tars, cache):
    index_shards([str(tars)], None, MemberNames(("jpg",)), workers=1)
    assert open_data(f"{tars}/{{00..02}}.tar", ALONE).folder.address == str(tars)
    assert not cache.exists()
    assert keys(open_data(f"{tars}/{{00..01}}.tar", ALONE)) == ["0a", "0b", "1a", "1b"]


def test_changed_tar_is_read_again_and_the_others_are_not(tars, cache):
    address = f"{tars}/{{00..02}}.tar"
    before = open_data(address, ALONE).manifest.fingerprint
    for part in (cache / "pmc-clip-stream" / "indexes" / "shards").iterdir():
        content = json.loads(part.read_text())
        content["described"]["written"]["record"]["sha256"] = "from the cache"
        part.write_text(json.dumps(content))
    (tars / "01.tar").write_bytes(tar_bytes("1c", "1d"))  # of the same size
    changed = open_data(address, ALONE)
    assert keys(changed) == ["0a", "0b", "1c", "1d", "2a", "2b"]
    assert changed.manifest.fingerprint != before
    cached = [record.sha256 == "from the cache" for record in changed.manifest.shards]
    assert cached == [True, False, True]


def test_tars_on_s3_are_described_once_and_again_when_they_change(s3, tars, capfd):
    files = s3fs.S3FileSystem()
    for path in tars.iterdir():
        files.pipe_file(f"{s3}/undescribed/{path.name}", path.read_bytes())
    address = f"{s3}/undescribed/{{00..02}}.tar"
    assert keys(open_data(address, ALONE)) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert "no manifest" in capfd.readouterr().err
    assert len(open_data(address, ALONE)) == 6
    assert capfd.readouterr().err == ""
    files.pipe_file(f"{s3}/undescribed/02.tar", tar_bytes("2x", "2y"))
    assert keys(open_data(address, ALONE)) == ["0a", "0b", "1a", "1b", "2x", "2y"]
    assert len(files.ls(f"{s3}/undescribed")) == 3


OPEN = "import sys; from pipeline.open_data import open_data; from pipeline.topology import Topology\n" + (
    "if __name__ == '__main__':\n print(open_data(sys.argv[1], Topology()).manifest.fingerprint)"
)


def start(address: str, launch: Callable) -> subprocess.Popen:
    """A process of its own that opens an address and prints the fingerprint."""
    _, environment = launch
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, address],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_several_processes_one_describes_and_all_open_the_same(tars, launch):
    (tars / "01.tar").write_bytes(tar_bytes(*map(str, range(3000))))
    processes = [start(f"{tars}/{{00..02}}.tar", launch) for _ in range(3)]
    printed = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({out for out, _ in printed}) == 1
    assert sum("reading all of it once" in said for _, said in printed) == 1


def test_killed_in_the_middle_it_goes_on_with_the_tars_that_are_missing(tars, cache, launch):
    """The last tar is a pipe that gives nothing: the process waits there until it is killed."""
    folder = cache / "pmc-clip-stream" / "indexes"
    os.mkfifo(tars / "03.tar")
    killed = start(f"{tars}/{{00..03}}.tar", launch)
    while len(list((folder / "shards").glob("index-*.json"))) < 3:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(folder.glob("*/manifest.json"))
    (tars / "03.tar").unlink()
    (tars / "03.tar").write_bytes(tar_bytes("3a"))
    for part in (folder / "shards").glob("index-*.json"):
        content = json.loads(part.read_text())
        content["described"]["written"]["record"]["sha256"] = "kept"
        part.write_text(json.dumps(content))
    dataset = open_data(f"{tars}/{{00..03}}.tar", ALONE)
    assert keys(dataset) == ["0a", "0b", "1a", "1b", "2a", "2b", "3a"]
    assert [record.sha256 == "kept" for record in dataset.manifest.shards] == [True, True, True, False]


def test_samples_that_cannot_be_used_are_left_out_and_told(tars, capfd):
    (tars / "02.tar").write_bytes(
        tar_bytes("good")[: -len(END_OF_ARCHIVE)] + tar_bytes("bad", extension="jp2")
    )
    assert keys(open_data(f"{tars}/{{00..02}}.tar", ALONE)) == ["0a", "0b", "1a", "1b", "good"]
    assert "1 no image, such as bad in 02.tar" in capfd.readouterr().err


def test_tars_with_other_members_say_which_flags_of_pipeline_index_would_do(tars):
    for path in tars.iterdir():
        path.write_bytes(tar_bytes("a", "b", extension="jp2"))
    with pytest.raises(
        DataError, match=r"none of 6 samples.*--image-ext .*jp2.*pipeline\.index --shards .*02}"
    ):
        open_data(f"{tars}/{{00..02}}.tar", ALONE)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("pipe:aws s3 cp s3://b/{000..163}.tar -", r"a pipe .* give the address that the pipe reads"),
        ("tars/{00..05}.tar", r"3 of 6 shards not there, such as .*03\.tar"),
        ("tars/0.tar.gz", "is compressed"),
        (
            "tars",
            r"no manifest\.json\); describe the tars in it with 'python -m pipeline\.index --shards tars'",
        ),
        ("nothing", r"no data set here .*pipeline\.shard"),
    ],
)
def test_address_of_nothing_that_can_be_read_is_refused_with_the_remedy(
    tars, tmp_path, monkeypatch, address, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        open_data(address, ALONE)


def test_cache_that_cannot_be_written_names_the_variable(tars, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tars / "00.tar"))
    with pytest.raises(UsageError, match=r"cannot be kept here .*XDG_CACHE_HOME"):
        open_data(f"{tars}/{{00..02}}.tar", ALONE)


def test_damaged_tar_is_named_and_leaves_no_index(tars, cache):
    whole = (tars / "01.tar").read_bytes()
    (tars / "01.tar").write_bytes(whole[:560])
    with pytest.raises(
        DataError, match=r"1 of 3 shards could not be described.*01\.tar: the tar ends at byte 560"
    ):
        open_data(f"{tars}/{{00..02}}.tar", ALONE)
    (tars / "01.tar").write_bytes(whole)
    assert len(open_data(f"{tars}/{{00..02}}.tar", ALONE)) == 6


def test_a_tar_on_the_hub_that_was_replaced_by_one_of_its_size_is_read_again(monkeypatch):
    with HubServer("owner/tars", {"a.tar": tar_bytes("1a", "1b")}) as hub:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": hub.endpoint})
        assert keys(open_data("hf://datasets/owner/tars/*.tar", ALONE)) == ["1a", "1b"]
        hub.files["a.tar"] = tar_bytes("1c", "1d")
        assert keys(open_data("hf://datasets/owner/tars/*.tar", ALONE)) == ["1c", "1d"]
