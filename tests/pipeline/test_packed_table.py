"""A table in place of shards: packed on first use, kept, and packed again only when it changed."""

import os
import shutil

import pytest

from pipeline.open_data import open_data
from pipeline.table_flags import TableFlags
from pipeline.topology import Topology
from shards import open_dataset

ALONE = Topology()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def captions(dataset):
    return sorted(dataset.read_sample(number).caption for number in range(len(dataset)))


def test_table_is_packed_on_first_use_as_pipeline_shard_packs_it(small, tmp_path, run, cache, capfd):
    dataset = open_data(str(small), ALONE)
    said = capfd.readouterr()
    assert "packing it once into shards" in said.err
    assert str(cache) in said.err
    assert said.out == ""
    assert captions(dataset) == sorted(f"caption {number}" for number in range(30))
    assert run("shard", "--csv", small, "--out", tmp_path / "by_hand" / "train").returncode == 0
    assert (
        open_dataset(str(tmp_path / "by_hand" / "train")).manifest.fingerprint == dataset.manifest.fingerprint
    )


def test_packed_table_is_found_again_even_when_its_images_are_gone(small, capfd):
    first = open_data(str(small), ALONE)
    for image in small.parent.glob("*.png"):
        image.unlink()
    capfd.readouterr()
    assert captions(open_data(str(small), ALONE)) == captions(first)
    assert capfd.readouterr().err == ""


def test_changed_table_is_packed_again(small):
    open_data(str(small), ALONE)
    lines = small.read_text().splitlines()
    small.write_text("\n".join(lines[:11]) + "\n")
    assert len(open_data(str(small), ALONE)) == 10


def test_images_and_columns_are_found_as_the_flags_say(small, tmp_path):
    shutil.copytree(small.parent, tmp_path / "elsewhere" / "figures", ignore=lambda folder, names: ["cache"])
    table = tmp_path / "elsewhere" / "other.tsv"
    table.write_text("picture\ttext\n3.png\tthe third\n")
    flags = TableFlags(
        images=(str(tmp_path / "elsewhere" / "figures"),), image_key="picture", caption_key="text"
    )
    assert captions(open_data(str(table), ALONE, flags)) == ["the third"]


def test_command_takes_a_table_where_it_takes_shards(small, run):
    done = run("stream", "--data", small, "--batch-size", 10, "--image-size", 32, "--keys", "keys.tsv")
    assert done.returncode == 0, done.stderr
    assert len((small.parent / "keys.tsv").read_text().splitlines()) == 30


def test_two_processes_pack_a_table_once(small, launch, start):
    jobs = [
        start(
            "stream", "--data", small, "--batch-size", 5, "--image-size", 32, RANK=str(rank), WORLD_SIZE="2"
        )
        for rank in range(2)
    ]
    said = [job.communicate(timeout=240)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert sum("packing it once" in text for text in said) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "absent.csv"], "absent.csv: no such table"),
        (["--data", "train.csv", "--image-key", "figure"], "no column 'figure'"),
        (["--data", "train.csv", "--separator", "ab"], "--separator 'ab'"),
        (["--data", "shards", "--images", "figures"], "there is no table among shards"),
    ],
)
def test_wrong_use_is_refused_with_what_to_do(small, run, flags, message):
    done = run("stream", *flags)
    assert done.returncode == 2
    assert message in done.stderr


def test_cache_that_cannot_be_written_is_named(small, monkeypatch, run, tmp_path):
    (tmp_path / "blocked").write_text("a file")
    done = run("stream", "--data", small, XDG_CACHE_HOME=str(tmp_path / "blocked"))
    assert done.returncode == 2
    assert "XDG_CACHE_HOME" in done.stderr
    assert os.path.isfile(tmp_path / "blocked")
