"""`pipeline.shard`, run as a user runs it: nothing lost, nothing changed, every fault said in one message."""

import csv
import hashlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import webdataset as wds
from PIL import Image

from shards import Folder, open_dataset


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder and a hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def picture(colour: int = 0, format: str = "PNG", size: tuple[int, int] = (20, 20)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (colour % 256, 80, 90)).save(out, format)
    return out.getvalue()


def noise() -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", (120, 90), random.Random(0).randbytes(120 * 90 * 3)).save(out, "JPEG")
    return out.getvalue()


def write_table(folder: Path, rows: list[dict[str, str]], name: str = "train.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


@pytest.fixture
def small(tmp_path) -> Path:
    """A table of 30 rows beside its images."""
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [{"image": f"{n}.png", "caption": f"caption {n}", "licence": f"CC {n}"} for n in range(30)]
    return write_table(tmp_path, rows)


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
    keys = [name.split(".")[0] for name in names]
    assert keys == sorted(keys)
    assert [name.split(".")[1] for name in names[1:3]] == ["txt", "json"]


def test_rows_are_shuffled_so_that_figures_of_one_article_part(sample_shards):
    dataset = open_dataset(str(sample_shards / "train"))
    rows = [json.loads(bytes(dataset.read_sample(n).members["json"]))["row"] for n in range(225)]
    steps = [abs(a - b) for a, b in itertools.pairwise(rows)]
    assert sum(steps) / len(steps) > 225 / 5


def test_workers_do_not_change_a_byte_and_the_seed_does(run, small, tmp_path):
    for name, extra in (("a", ("--workers", 1)), ("b", ("--workers", 3)), ("c", ("--seed", 1))):
        done = run(
            "shard", "--csv", small, "--out", tmp_path / name / "set", "--samples-per-shard", 8, *extra
        )
        assert done.returncode == 0, done.stderr
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")
    assert set(files(tmp_path / "a")) == {f"set/set-{n:06d}.tar" for n in range(4)} | {
        "set/manifest.json",
        "set/index.bin",
        "set/checksums.bin",
        "set/rejected.csv",
    }


def test_the_table_alone_is_enough(run, small, tmp_path):
    done = run("shard", "--csv", "train.csv")
    assert done.returncode == 0, done.stderr
    assert "30 samples in 1 shards" in done.stdout
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


def test_hostile_rows_are_rejected_or_kept_whole(run, tmp_path):
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
    bad = [
        *broken,
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
        "good.jpg": "empty caption",
        "": "empty image name",
    }
    assert {name: reasons[name] for name in expected} == expected
    assert reasons["cut.png"] in ("truncated", "broken image", "not an image")
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
            1,
            "all 1 rows were rejected, 1 of them because: missing",
        ),
        ("image,caption\na.png,x\n", ("--workers", "0"), 2, "--workers 0: it must be at least 1"),
        ("image,caption\na.png,x\n", ("--samples-per-shard", "0"), 2, "it must be at least 1"),
        ("image,caption\na.png,x\n", ("--no-such-flag",), 2, "Unrecognized"),
    ],
)
def test_bad_input_is_said_in_one_message(run, tmp_path, table, flags, code, message):
    if table is not None:
        (tmp_path / "train.csv").write_text(table)
    done = run("shard", "--csv", "train.csv", *flags)
    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (code, True, False), (
        done.stderr
    )


def test_table_that_is_not_utf8_is_refused(run, tmp_path):
    (tmp_path / "train.csv").write_bytes("image,caption\na.png,Möbius\n".encode("latin1"))
    done = run("shard", "--csv", "train.csv")
    assert done.returncode == 2
    assert "not UTF-8" in done.stderr


def test_output_of_another_data_set_is_left_alone_unless_told(run, small, tmp_path):
    assert run("shard", "--csv", small).returncode == 0
    before = files(tmp_path / "shards")
    again = run("shard", "--csv", small)
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    refused = run("shard", "--csv", small, "--seed", 5)
    assert refused.returncode == 2
    assert "holds another data set (seed 0 there, 5 here)" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert files(tmp_path / "shards") == before
    assert run("shard", "--csv", small, "--seed", 5, "--overwrite").returncode == 0
    assert files(tmp_path / "shards") != before


def test_foreign_tars_in_the_output_are_never_touched(run, small, tmp_path):
    (tmp_path / "shards" / "train").mkdir(parents=True)
    (tmp_path / "shards" / "train" / "theirs.tar").write_bytes(b"precious")
    done = run("shard", "--csv", small)
    assert done.returncode == 2
    assert "such as theirs.tar" in done.stderr
    assert run("shard", "--csv", small, "--overwrite").returncode == 0
    assert (tmp_path / "shards" / "train" / "theirs.tar").read_bytes() == b"precious"


def test_full_disk_is_said_and_what_was_finished_stays(run, small, tmp_path):
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
    assert not [name for name in files(tmp_path / "out") if name.endswith((".tmp", ".part.json"))]


def kill_and_rerun(table: Path, out: Path, kills: int, seed: int) -> None:
    """Start the job, kill it and its workers at random moments, and let the last run finish."""
    moments = random.Random(seed)
    command = [sys.executable, "-m", "pipeline.shard", "--csv", str(table), "--out", str(out)]
    command += ["--samples-per-shard", "15", "--workers", "2"]
    for _ in range(kills):
        job = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], start_new_session=True, stdout=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.7, 2.5))
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_jobs_end_with_the_same_bytes_and_no_stray_files(shared, tmp_path, kills):
    table = shared / "pmc_sample" / "train.csv"
    kill_and_rerun(table, tmp_path / "a" / "set", 0, seed=0)
    kill_and_rerun(table, tmp_path / "b" / "set", kills, seed=kills)
    assert files(tmp_path / "b") == files(tmp_path / "a")


def test_workers_end_when_their_parent_is_killed(shared, tmp_path):
    table = shared / "pmc_sample" / "train.csv"
    marker = str(tmp_path / "set")
    job = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pipeline.shard",
            "--csv",
            str(table),
            "--out",
            marker,
            "--samples-per-shard",
            "5",
        ],
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    time.sleep(2)
    job.kill()
    job.wait()
    deadline = time.monotonic() + 5
    while (alive := processes_of_session(job.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def processes_of_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def test_shards_on_s3_are_the_same_bytes_and_survive_a_kill(run, small, tmp_path, s3):
    flags = ("--csv", small, "--samples-per-shard", 8)
    assert run("shard", *flags, "--out", tmp_path / "set").returncode == 0
    job = subprocess.Popen(
        [sys.executable, "-m", "pipeline.shard", *map(str, flags), "--out", f"{s3}/pmc/set"],
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    time.sleep(2)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    done = run("shard", *flags, "--out", f"{s3}/pmc/set")
    assert done.returncode == 0, done.stderr
    remote, local = Folder(f"{s3}/pmc/set"), Folder(tmp_path / "set")
    assert remote.names() == local.names()
    assert {name: remote.read(name) for name in remote.names()} == {
        name: local.read(name) for name in local.names()
    }


def test_unreachable_output_is_said(run, small):
    done = run("shard", "--csv", small, "--out", "nosuchprotocol://bucket/x")
    assert done.returncode == 2
    assert "nosuchprotocol" in done.stderr
