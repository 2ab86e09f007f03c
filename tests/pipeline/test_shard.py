"""`pipeline.shard`, run as a user runs it: nothing lost, nothing changed, every fault said in one message."""

import csv
import io
import itertools
import json
import os
import random
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
import webdataset as wds
from PIL import Image

from pipeline.checks import parse_bytes
from shards import open_dataset


def noise() -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", (120, 90), random.Random(0).randbytes(120 * 90 * 3)).save(out, "JPEG")
    return out.getvalue()


def lzw_tiff_with_wrong_codes() -> bytes:
    out = io.BytesIO()
    Image.frombytes("L", (60, 60), random.Random(0).randbytes(3600)).save(out, "TIFF", compression="tiff_lzw")
    return out.getvalue()[:20] + b"\xff" * 400 + out.getvalue()[420:]


def with_size(png: bytes, width: int, height: int) -> bytes:
    """The same PNG, but with a header that claims this size."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


@pytest.mark.parametrize(("split", "count"), [("train", 225), ("valid", 26), ("test", 26)])
def test_every_real_figure_is_there_with_its_bytes_and_caption(shared, sample_shards, split, count):
    with open(shared / "pmc_sample" / f"{split}.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    dataset = open_dataset(str(sample_shards / split))
    assert len(dataset) == len(rows) == count
    seen = set()
    for number in range(count):
        sample = dataset.read_sample(number)
        described = json.loads(bytes(sample.members["json"]))
        row = rows[described["row"]]
        assert described["image"] == row["image"]
        assert sample.caption == row["caption"]
        assert bytes(sample.image) == (shared / "pmc_sample" / "images" / row["image"]).read_bytes()
        seen.add(described["row"])
    assert seen == set(range(count))
    assert (sample_shards / split / "rejected.csv").read_text() == "row,image,reason\n"


def test_webdataset_and_tar_read_the_same_samples(sample_shards):
    dataset = open_dataset(str(sample_shards / "train"))
    urls = [str(sample_shards / "train" / shard.name) for shard in dataset.manifest.shards]
    theirs = list(wds.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in theirs] == [dataset.read_sample(n).key for n in range(225)]
    for number in (0, 57, 224):
        ours = dataset.read_sample(number)
        assert {k: v for k, v in theirs[number].items() if not k.startswith("__")} == {
            extension: bytes(content) for extension, content in ours.members.items()
        }
    with tarfile.open(urls[0]) as tar:
        names = tar.getnames()
    listed = subprocess.run(["tar", "-tf", urls[0]], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == names
    keys = [name.split(".")[0] for name in names]
    assert keys == sorted(keys)
    assert [name.split(".")[1] for name in names[1:3]] == ["txt", "json"]


def test_rows_are_shuffled_so_that_figures_of_one_article_part(sample_shards):
    dataset = open_dataset(str(sample_shards / "train"))
    rows = [json.loads(bytes(dataset.read_sample(n).members["json"]))["row"] for n in range(225)]
    steps = [abs(a - b) for a, b in itertools.pairwise(rows)]
    assert sum(steps) / len(steps) > 225 / 5


def test_workers_do_not_change_a_byte_and_the_seed_does(run, small, hashes, tmp_path):
    for name, extra in (("a", ("--workers", 1)), ("b", ("--workers", 3)), ("c", ("--seed", 1))):
        done = run(
            "shard", "--csv", small, "--out", tmp_path / name / "set", "--samples-per-shard", 8, *extra
        )
        assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert hashes(tmp_path / "a") != hashes(tmp_path / "c")
    assert set(hashes(tmp_path / "a")) == {f"set/set-{n:06d}.tar" for n in range(4)} | {
        "set/manifest.json",
        "set/index.bin",
        "set/checksums.bin",
        "set/rejected.csv",
        "set/plan.json",
        "set/dataset_report.html",
    }


def test_the_table_alone_is_enough(run, small, tmp_path):
    done = run("shard", "--csv", "train.csv")
    assert done.returncode == 0, done.stderr
    assert "30 samples in 1 shard," in done.stdout
    assert done.stdout.endswith("next: python -m pipeline.stream --data shards/train --batch-size 30\n")
    assert "next: python -m pipeline.stream --data shards/train" in done.stdout
    assert len(open_dataset(str(tmp_path / "shards" / "train"))) == 30


def test_other_columns_travel_along(run, small, tmp_path):
    run("shard", "--csv", small)
    described = [
        json.loads(bytes(open_dataset(str(tmp_path / "shards/train")).read_sample(n).members["json"]))
        for n in range(30)
    ]
    assert all(
        d == {"image": f"{d['row']}.png", "row": d["row"], "licence": f"CC {d['row']}"} for d in described
    )


def test_hostile_rows_are_rejected_or_kept_whole(run, tmp_path, picture, write_table):
    images = tmp_path / "table" / "images"
    images.mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(picture())
    good = noise()
    whole = {
        "good.jpg": good,
        "UPPER.JPG": picture(2, "JPEG"),
        "jpeg named.png": picture(3, "JPEG"),
        "a.b.c.gif": picture(4, "GIF"),
        "sub/dir/ü.webp": picture(5, "WEBP"),
    }
    broken = {
        "cut.jpg": good[: len(good) // 2],
        "cut.png": picture(6, "PNG", (300, 300))[:60],
        "text.png": b"not an image at all",
        "empty.png": b"",
        "icon.ico": picture(7, "ICO", (16, 16)),
        "cut.tif": picture(8, "TIFF", (300, 300))[:5000],
        "cut.webp": picture(9, "WEBP", (300, 300))[:-20],
        "noisy.tif": lzw_tiff_with_wrong_codes(),
        "bomb.png": with_size(picture(), 30_000, 30_000),
    }
    for name, data in {**whole, **broken}.items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(data)
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    captions = [
        'quotes "twice", commas',
        "two\nlines and\r\ntwo more",
        "α–β ≥ 5 µm  ",
        "x" * 3000,
        "=1+1; {json}",
    ]
    rows = [{"image": name, "caption": text} for name, text in zip(whole, captions, strict=True)]
    os.mkfifo(images / "pipe.png")
    bad = [
        *broken,
        "pipe.png",
        "x" * 5000 + ".png",
        "missing.png",
        "../../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "sub",
        "\0.png",
    ]
    rows += [{"image": name, "caption": "fine"} for name in bad]
    rows += [{"image": "good.jpg", "caption": "  "}, {"image": "", "caption": "no image"}]
    done = run("shard", "--csv", write_table(tmp_path / "table", rows), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "out"))
    kept = {}
    for number in range(len(dataset)):
        sample = dataset.read_sample(number)
        kept[json.loads(bytes(sample.members["json"]))["image"]] = (bytes(sample.image), sample.caption)
    assert kept == {name: (whole[name], text) for name, text in zip(whole, captions, strict=True)}
    with open(tmp_path / "out" / "rejected.csv", encoding="utf-8", newline="") as file:
        reasons = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    expected = {
        "cut.jpg": "truncated",
        "text.png": "not an image",
        "empty.png": "empty file",
        "icon.ico": "format ICO is not supported",
        "missing.png": "missing",
        "../../secret.png": "outside the image folder",
        str(tmp_path / "secret.png"): "outside the image folder",
        "link.png": "outside the image folder",
        "sub": "not a file",
        "pipe.png": "not a file",
        "bomb.png": "too many pixels",
        "x" * 5000 + ".png": "unreadable (File name too long)",
        "good.jpg": "empty caption",
        "": "empty image name",
    }
    assert {name: reasons[name] for name in expected} == expected
    for name in ("cut.png", "cut.tif", "cut.webp", "noisy.tif"):
        assert reasons[name] in ("truncated", "broken image", "not an image"), name
    assert not done.stderr  # libtiff would complain here on its own
    assert len(reasons) == len(bad) + 2
    assert not list(tmp_path.glob("*.tar"))


@pytest.mark.parametrize(
    ("table", "flags", "code", "message"),
    [
        (None, (), 2, "train.csv: no such table"),
        ("", (), 2, "the table is empty"),
        ("image,caption\n", (), 2, "the table has no rows"),
        ("picture,caption\na.png,x\n", (), 2, "no column 'image'; its columns are 'picture', 'caption'"),
        ("image,text\na.png,x\n", (), 2, "no column 'caption'; its columns are 'image', 'text'"),
        ("image\tcaption\na.png\tx\n", (), 2, r"give --separator '\t'"),
        ('image,caption\na.png,"open\n', (), 2, "not a well-formed table"),
        ("image,caption\na.png,x\n", (), 2, "say where they are with --images FOLDER"),
        ("image,caption\na.png,x\n", ("--images", "nowhere"), 2, "nowhere: no such folder of images"),
        (
            "image,caption\na.png,x\n",
            ("--images", "."),
            2,
            "none of the images of train.csv (such as 'a.png') is in",
        ),
        ("image,caption\na.png,x\n", ("--workers", "0"), 2, "--workers 0: it must be at least 1"),
        ("image,caption\na.png,x\n", ("--samples-per-shard", "0"), 2, "it must be at least 1"),
        ("image,caption\na.png,x\n", ("--no-such-flag",), 2, "Unrecognized"),
        ("image,caption\na.png,x\n", ("--out", "train.csv"), 2, "train.csv is a file; give a folder"),
        ("image,caption\na.png,x\n", ("--out", "train.csv/a/b", "--dry-run"), 2, "train.csv is a file"),
    ],
)
def test_bad_input_is_said_in_one_message(run, tmp_path, table, flags, code, message):
    if table is not None:
        (tmp_path / "train.csv").write_text(table)
    done = run("shard", "--csv", "train.csv", *flags)
    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (code, True, False), (
        done.stderr
    )


def test_output_of_another_data_set_is_left_alone_unless_told(run, small, hashes, tmp_path):
    assert run("shard", "--csv", small).returncode == 0
    before = hashes(tmp_path / "shards")
    again = run("shard", "--csv", small)
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    refused = run("shard", "--csv", small, "--seed", 5)
    assert refused.returncode == 2
    assert "holds another data set (seed 0 there, 5 here)" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert hashes(tmp_path / "shards") == before
    assert run("shard", "--csv", small, "--seed", 5, "--overwrite").returncode == 0
    assert hashes(tmp_path / "shards") != before


def test_other_images_are_another_job(run, small, picture, tmp_path):
    """Corrected `--images` must not be answered with "nothing to do"."""
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "3.png").write_bytes(picture())
    first = run("shard", "--csv", small, "--images", "wrong")
    assert ": 1 sample in 1 shard," in first.stdout
    assert "29 missing" in first.stdout
    refused = run("shard", "--csv", small)
    assert refused.returncode == 2
    assert "images wrong there, . here" in refused.stderr
    assert "30 samples" in run("shard", "--csv", small, "--overwrite").stdout


def test_overwrite_removes_nothing_before_the_request_is_known_to_be_good(run, small, hashes, tmp_path):
    assert run("shard", "--csv", small).returncode == 0
    before = hashes(tmp_path / "shards")
    for wrong in (("--images", "nowhere"), ("--image-key", "nothing"), ("--workers", 0)):
        assert run("shard", "--csv", small, "--overwrite", *wrong).returncode == 2
    assert hashes(tmp_path / "shards") == before


def test_overwrite_removes_all_of_the_old_data_set_and_nothing_else(run, small, tmp_path):
    assert run("shard", "--csv", small, "--samples-per-shard", 4).returncode == 0
    renamed = (tmp_path / "shards" / "train").rename(tmp_path / "shards" / "old")
    for name in ("notes.txt", ".mine.abc.tmp", "train-000099.tar"):
        (renamed / name).write_text("precious")
    (renamed / ".old-000001.tar.x7y_.tmp").write_text("left by a kill in the middle of writing")
    assert run("shard", "--csv", small, "--out", "shards/old", "--overwrite").returncode == 0
    assert {path.name for path in renamed.iterdir()} == {
        *("old-000000.tar", "manifest.json", "index.bin", "checksums.bin", "rejected.csv", "plan.json"),
        *("dataset_report.html", "notes.txt", ".mine.abc.tmp", "train-000099.tar"),
    }


def test_a_shard_that_was_deleted_is_written_again(run, small, hashes, tmp_path):
    assert run("shard", "--csv", small, "--samples-per-shard", 10, "--out", "a/set").returncode == 0
    before = hashes(tmp_path / "a")
    (tmp_path / "a" / "set" / "set-000001.tar").unlink()
    done = run("shard", "--csv", small, "--samples-per-shard", 10, "--out", "a/set")
    assert (done.returncode, "written again, since gone or cut short: 1 shard" in done.stdout) == (0, True)
    assert hashes(tmp_path / "a") == before


def test_a_deleted_shard_whose_images_changed_is_not_passed_off_as_the_old_one(run, small, picture, tmp_path):
    assert run("shard", "--csv", small).returncode == 0
    (tmp_path / "shards" / "train" / "train-000000.tar").unlink()
    (tmp_path / "3.png").write_bytes(picture(200))
    for _ in range(2):  # the first refusal leaves nothing that the second one would take for the shard
        done = run("shard", "--csv", small)
        assert done.returncode == 1
        assert "train-000000.tar was gone" in done.stderr
        assert "the images changed since; pack everything again with --overwrite" in done.stderr


def test_foreign_tars_in_the_output_are_never_touched(run, small, tmp_path):
    (tmp_path / "shards" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train" / "theirs.tar").write_bytes(b"precious")
    done = run("shard", "--csv", small)
    assert done.returncode == 2
    assert "such as theirs.tar" in done.stderr
    assert run("shard", "--csv", small, "--overwrite").returncode == 0
    assert (tmp_path / "shards" / "train" / "theirs.tar").read_bytes() == b"precious"


def test_full_disk_is_said_and_what_was_finished_stays(small, hashes, tmp_path):
    """A file-size limit stands for the disk's end: writing fails in the same place, with an error of the
    system.
    """
    command = f"ulimit -f 8; exec {sys.executable} -m pipeline.shard --csv {small} --out {tmp_path / 'out'}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert f"{tmp_path / 'out'}/out-000000.tar: writing failed" in done.stderr
    assert "Traceback" not in done.stderr
    subprocess.run(
        ["bash", "-c", command.replace("ulimit -f 8;", "")], cwd=Path(__file__).parents[2], check=True
    )
    assert not [name for name in hashes(tmp_path / "out") if name.endswith((".tmp", ".part.json"))]


def test_full_temporary_folder_is_said_with_the_remedy(small):
    command = f"ulimit -f 1; exec {sys.executable} -m pipeline.shard --csv {small}"
    small.write_text("image,caption\n" + "0.png,a caption\n" * 100)
    done = subprocess.run(
        ["bash", "-c", command], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "train.csv could not be copied to the temporary folder" in done.stderr
    assert "set TMPDIR" in done.stderr


def test_a_complete_data_set_whose_index_is_damaged_says_what_to_do(run, small, tmp_path):
    assert run("shard", "--csv", small).returncode == 0
    (tmp_path / "shards" / "train" / "index.bin").write_bytes(b"\0" * 120)
    done = run("shard", "--csv", small)
    assert done.returncode == 1
    assert "index.bin: damaged" in done.stderr
    assert "write the data set again with --overwrite" in done.stderr
    assert run("shard", "--csv", small, "--overwrite").returncode == 0
    assert "nothing to do" in run("shard", "--csv", small).stdout


def test_no_table_is_said(run):
    done = run("shard", "--csv")
    assert (done.returncode, done.stderr) == (2, "error: --csv: give at least one table\n")


def test_unreachable_output_is_said(run, small):
    done = run("shard", "--csv", small, "--out", "nosuchprotocol://bucket/x")
    assert done.returncode == 2
    assert "nosuchprotocol" in done.stderr


def test_several_captions_of_an_image_stay_several(run, small, picture):
    rows = [{"image": f"{n}.png", "caption": ["a line", f"caption\nof {n}"]} for n in range(30)]
    table = small.with_name("several.jsonl")
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("shard", "--csv", table, "--caption-lines", "--out", "out").returncode == 0
    dataset = open_dataset(str(small.parent / "out"))
    captions = sorted(dataset.read_sample(number).captions for number in range(30))
    assert captions == sorted(("a line", f"caption of {n}") for n in range(30))


@pytest.mark.parametrize(
    ("text", "size"), [("300KB", 300_000), ("300kB", 300_000), ("2KiB", 2048), ("1.5G", 1_500_000_000)]
)
def test_sizes_may_have_any_usual_unit(text, size):
    assert parse_bytes("--max-shard-size", text) == size
