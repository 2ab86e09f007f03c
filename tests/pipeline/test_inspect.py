"""pipeline.inspect: what it says of a data set, what it finds wrong with shards, the sample it extracts."""

import io
import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.inspecting.extract_sample import file_name
from shards import Folder, MemberNames, WrittenShard, open_dataset, write_manifest, write_shard

NAMES = MemberNames(("jpg",), "txt")


def members(number: int) -> dict[str, bytes]:
    return {
        "jpg": bytes([number]) * 900,
        "txt": f"figure {number} – α".encode(),
        "json": b'{"row": %d}' % number,
    }


def written_shards(folder: Folder, tool: str) -> list[WrittenShard]:
    """Three shards of ten samples; as pipeline.shard leaves them, keys ascend with gaps."""
    step = 3 if tool == "pipeline.shard" else -3
    return [
        write_shard(
            folder, f"{folder.name}-{s:06d}.tar", ((f"{100 + step * n:09d}", members(n)) for n in numbers)
        )
        for s, numbers in enumerate((range(10), range(10, 20), range(20, 30)))
    ]


@pytest.fixture(params=["pipeline.shard", "pipeline.index"])
def data(request, tmp_path) -> Path:
    """A data set of 30 samples in 3 shards, made by either tool; key 100 + 3n or 100 - 3n."""
    folder = Folder(tmp_path / "data")
    write_manifest(folder, written_shards(folder, request.param), {"tool": request.param}, member_names=NAMES)
    return tmp_path / "data"


@pytest.fixture
def sharded(tmp_path) -> Path:
    folder = Folder(tmp_path / "data")
    write_manifest(folder, written_shards(folder, "pipeline.shard"), {"tool": "pipeline.shard"})
    return tmp_path / "data"


def test_summary_says_what_the_data_set_is(run, sharded):
    dataset = open_dataset(str(sharded))
    done = run("inspect", "--data", "data")
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert said["samples"].endswith(" 30")
    assert said["shards"].endswith("3, beside the manifest")
    assert said["fingerprint"].endswith(dataset.manifest.fingerprint)
    assert f"{sum(path.stat().st_size for path in sharded.glob('*.tar')):,}" in done.stdout
    assert "min 3,584, median 3,584, max 3,584" in done.stdout


def test_shards_that_lie_elsewhere_make_a_view_and_long_hashes_are_cut(run, sharded, tmp_path):
    elsewhere = [
        WrittenShard(replace(shard.record, folder="../data"), shard.lengths, shard.checksums)
        for shard in written_shards(Folder(sharded), "pipeline.shard")
    ]
    made_by = {"tool": "pipeline.select", "fingerprints": ["0123456789abcdef" * 4], "seed": 0}
    write_manifest(Folder(tmp_path / "view"), elsewhere, made_by)
    done = run("inspect", "--data", "view")
    assert "yes: all samples in its shards" in done.stdout
    assert 'pipeline.select: fingerprints ["0123456789ab…"], seed 0\n' in done.stdout


def test_a_file_in_the_place_of_the_output_is_said(run, sharded, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run("inspect", "--data", "data", "--sample", "000000003", "--out", "file")
    assert (done.returncode, "file is a file; give a folder" in done.stderr) == (2, True)


def test_whole_shards_are_verified(run, data):
    done = run("inspect", "--data", "data", "--verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified: 3 shards, 30 samples" in done.stdout


def test_every_bad_shard_is_named_with_all_that_is_wrong(run, sharded):
    first, second, third = sorted(sharded.glob("*.tar"))
    content = bytearray(first.read_bytes())
    content[2 * 3584 + 600] ^= 1  # in the image of the third sample
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[: 5 * 3584 + 100])
    third.unlink()
    (sharded / "data-000003.tar").write_bytes(bytes(1024))
    done = run("inspect", "--data", "data", "--verify", "--workers", "1")
    assert done.returncode == 1
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ".tar: " in line)
    assert found.keys() == {f"data/data-00000{n}.tar" for n in range(4)}
    assert found["data/data-000000.tar"].startswith(
        "1 of 10 samples are changed or cut off, the first of them sample 2 at byte 7,168; its sha256 is"
    )
    assert "cut short: 18,020 bytes where the manifest says 36,864" in found["data/data-000001.tar"]
    assert "5 of 10 samples are changed or cut off" in found["data/data-000001.tar"]
    assert found["data/data-000002.tar"] == "it is not there"
    assert "does not list it" in found["data/data-000003.tar"]
    assert "3 of 3 shards bad: copy them again" in done.stderr


def test_tar_that_the_manifest_does_not_list_is_named(run, data):
    made_by = open_dataset(str(data)).manifest.made_by["tool"]
    (data / "data-000003.tar").write_bytes(bytes(1024))
    done = run("inspect", "--data", "data", "--verify", "--workers", "1")
    # Tars that others made may well lie beside those that were described.
    assert done.returncode == (1 if made_by == "pipeline.shard" else 0)


def test_index_of_other_shards_is_noticed(run, sharded):
    """A manifest and an index that fit each other, but not the tars."""
    folder = Folder(sharded)
    right = written_shards(folder, "pipeline.shard")
    lengths = right[1].lengths.copy()
    lengths[3], lengths[4] = lengths[3] + 512, lengths[4] - 512
    wrong = [right[0], WrittenShard(right[1].record, lengths, right[1].checksums), right[2]]
    write_manifest(folder, wrong, {"tool": "pipeline.shard"})
    done = run("inspect", "--data", "data", "--verify", "--workers", "1")
    assert done.returncode == 1
    assert (
        "data-000001.tar: the index is not of this shard: its samples begin elsewhere from sample 3"
        in done.stdout
    )
    assert "data-000000.tar" not in done.stdout
    (sharded / "index.bin").write_bytes(b"\0" * 120)
    damaged = run("inspect", "--data", "data", "--verify", "--workers", "1")
    assert (damaged.returncode, "index.bin: damaged" in damaged.stderr) == (1, True)


def test_views_are_verified_where_their_shards_lie(run, sharded, tmp_path):
    elsewhere = [
        WrittenShard(replace(shard.record, folder="../data"), shard.lengths, shard.checksums)
        for shard in written_shards(Folder(sharded), "pipeline.shard")
    ]
    write_manifest(
        Folder(tmp_path / "view"), elsewhere, {"tool": "pipeline.select"}, selected=np.arange(30) % 3 == 0
    )
    (tmp_path / "view" / "other.tar").write_bytes(b"")
    done = run("inspect", "--data", "view", "--verify", "--workers", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "yes: 10 of the 30 samples in its shards" in done.stdout
    assert "in ../data" in done.stdout
    with open(sharded / "data-000002.tar", "r+b") as file:
        file.seek(700)
        file.write(b"!")
    done = run("inspect", "--data", "view", "--verify", "--workers", "1")
    assert (done.returncode, "data-000002.tar: 1 of 10 samples" in done.stdout) == (1, True)


@pytest.mark.parametrize("number", [0, 13, 29])
def test_sample_of_a_key_is_extracted(run, data, tmp_path, number):
    sample = open_dataset(str(data)).read_sample(number)
    done = run("inspect", "--data", "data", "--sample", sample.key, "--out", "found")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "found").iterdir()} == {
        f"{sample.key}.{extension}": content for extension, content in members(number).items()
    }
    assert f"figure {number} – α" in done.stdout
    assert f'"row": {number}' in done.stdout


def test_sharded_samples_are_found_though_other_shards_are_gone(run, sharded):
    """By a handful of reads, not by reading everything."""
    key = open_dataset(str(sharded)).read_sample(14).key
    (sharded / "data-000002.tar").unlink()
    assert run("inspect", "--data", "data", "--sample", key).returncode == 0


def test_unknown_key_is_refused_with_its_neighbours(run, sharded):
    done = run("inspect", "--data", "data", "--sample", "000000104")
    assert done.returncode == 2
    assert "no sample has the key '000000104'; its neighbours are '000000103' and '000000106'" in done.stderr
    beyond = run("inspect", "--data", "data", "--sample", "999999999")
    assert re.search(r"its neighbour is '\d{9}'$", beyond.stderr.strip()), beyond.stderr


def test_nothing_is_written_outside_the_folder_or_over_other_files(run, tmp_path):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for key in ("../../escaped", "/absolute/x", "notes"):
            for extension, content in (("jpg", b"image"), ("txt", b"a\x1b[2Jcaption")):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (tmp_path / "notes.txt").write_text("mine")
    assert run("index", "--shards", "tars", "--workers", "1").returncode == 0
    before = {path for path in tmp_path.parent.rglob("*") if "out" not in path.parts}
    for key in ("../../escaped", "/absolute/x"):
        done = run("inspect", "--data", "tars", "--sample", key, "--out", "out")
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
    assert {path for path in tmp_path.parent.rglob("*") if "out" not in path.parts} == before
    assert len(list((tmp_path / "out").iterdir())) == 4
    refused = run("inspect", "--data", "tars", "--sample", "notes")
    assert (refused.returncode, (tmp_path / "notes.txt").read_text()) == (2, "mine")
    unknown = run("inspect", "--data", "tars", "--sample", "notes.jpg")
    assert (unknown.returncode, "without extension: 'notes'?" in unknown.stderr) == (2, True)


@pytest.mark.parametrize(
    "key", ["..", "../..", "a/../..", "C:\\x", "a\nb", ".hidden", "\udcff", "é" * 200, ""]
)
def test_file_names_are_plain(key):
    name = file_name(key, "jpg")
    assert Path(name).name == name
    assert name.isprintable()
    assert not name.startswith(".")
    assert len(name.encode()) <= 255


def test_flags_that_need_each_other(run, sharded):
    assert run("inspect", "--data", "data", "--out", "x").returncode == 2
    assert run("inspect", "--data", "nowhere").returncode == 2
    assert run("inspect", "--data", "data", "--verify", "--workers", "0").returncode == 2
    assert json.loads((sharded / "manifest.json").read_text())["samples"] == 30
