"""Jobs of `pipeline.shard`: splits, limits, duplicates, many tasks, and what a stop leaves."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest

from shards import open_dataset


def described(folder):
    """The JSON of every sample of a data set."""
    dataset = open_dataset(str(folder))
    return [json.loads(bytes(dataset.read_sample(number).members["json"])) for number in range(len(dataset))]


def rejected(out):
    with open(out / "rejected.csv", encoding="utf-8", newline="") as file:
        return {int(row["row"]): row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def articles(tmp_path, picture, write_table):
    """A table of 120 rows, three figures of each of 40 articles."""
    for number in range(40):
        (tmp_path / f"PMC{number}_1.png").write_bytes(picture(number))
    for number, figure in itertools.product(range(40), (2, 3)):
        shutil.copy(tmp_path / f"PMC{number}_1.png", tmp_path / f"PMC{number}_{figure}.png")
    rows = [
        {"image": f"PMC{n}_{figure}.png", "caption": f"figure {figure} of {n}", "pmcid": str(n // 4)}
        for figure in (1, 2, 3)
        for n in range(40)
    ]
    return write_table(tmp_path, rows)


SPLIT = ("--split", "train=0.6,valid=0.2,test=0.2")


def test_no_article_is_in_two_splits_and_later_rows_move_nothing(run, articles, write_table, tmp_path):
    assert run("shard", "--csv", articles, "--out", "a", *SPLIT).returncode == 0
    splits = {name: described(tmp_path / "a" / name) for name in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == 120
    articles_of = {name: {d["image"].partition("_")[0] for d in rows} for name, rows in splits.items()}
    assert all(articles_of.values())
    assert not set.intersection(*articles_of.values())
    assert sum(map(len, articles_of.values())) == 40
    assert (tmp_path / "a" / "train" / "train-000000.tar").exists()
    with open(articles, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    fewer = write_table(tmp_path, rows[:40], "fewer.csv")
    assert run("shard", "--csv", fewer, "--out", "b", *SPLIT, "--seed", 3).returncode == 0
    for name in splits:
        there = {d["image"] for d in described(tmp_path / "b" / name)}
        assert there == {d["image"] for d in splits[name]} & {row["image"] for row in rows[:40]}


def test_groups_come_from_a_column_where_one_is_named(run, articles, tmp_path):
    assert run("shard", "--csv", articles, "--out", "a", *SPLIT, "--group-key", "pmcid").returncode == 0
    groups = [{d["pmcid"] for d in described(tmp_path / "a" / name)} for name in ("train", "valid", "test")]
    assert sorted(itertools.chain(*groups)) == sorted(map(str, range(10)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--split", "train=1.5"), "the shares add up to 1.5"),
        (("--split", "a=0.999999,b=0.000001"), "of 120 rows, no group falls into b"),
        ((*SPLIT, "--group-key", "nothing"), "--group-key nothing: that column is empty in every row"),
        ((*SPLIT, "--group-pattern", "ARTICLE"), "'ARTICLE' is nowhere in them"),
        (("--group-key", "pmcid"), "say what --split keeps together"),
        (("--max-shard-size", "lots"), "write a number of bytes"),
        (("--max-rejected", "120%"), "write a share such as 1% or 0.01"),
        (("--task", "4/4"), "write it as I/N"),
        (("--quality", "0", "--format", "jpeg"), "--quality 0"),
        (("--min-side", "0"), "--min-side 0: it must be at least 1"),
        (("--max-shard-size", "0"), "--max-shard-size 0: it must be at least one byte"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_anything_is_written(
    run, articles, tmp_path, flags, message
):
    done = run("shard", "--csv", articles, "--out", "a", *flags)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "a").exists()


def test_shards_hold_no_more_image_bytes_than_allowed(run, small, tmp_path):
    sizes = {f"{number}.png": (tmp_path / f"{number}.png").stat().st_size for number in range(30)}
    limit = 4 * max(sizes.values())
    assert run("shard", "--csv", small, "--max-shard-size", limit).returncode == 0
    dataset = open_dataset(str(tmp_path / "shards" / "train"))
    images = [sizes[d["image"]] for d in described(tmp_path / "shards" / "train")]
    stops = np.cumsum([shard.samples for shard in dataset.manifest.shards])
    filled = [sum(images[start:stop]) for start, stop in itertools.pairwise([0, *stops.tolist()])]
    assert len(images) == 30
    assert max(filled) <= limit < min(filled[:-1]) + max(images)


def test_images_that_were_there_before_are_duplicates(run, articles, hashes, tmp_path):
    done = run("shard", "--csv", articles, "--drop-duplicates", "--out", "a/set")
    assert done.returncode == 0, done.stderr
    assert rejected(tmp_path / "a" / "set") == dict.fromkeys(range(40, 120), "duplicate")
    assert {d["row"] for d in described(tmp_path / "a" / "set")} == set(range(40))
    before = hashes(tmp_path / "a")
    (tmp_path / "a" / "set" / "set-000000.tar").unlink()
    assert run("shard", "--csv", articles, "--drop-duplicates", "--out", "a/set").returncode == 0
    assert hashes(tmp_path / "a") == before


def test_a_row_without_caption_takes_no_image_from_a_later_row(run, small, write_table, tmp_path):
    pairs = (("1.png", " "), ("1.png", "first"), ("2.png", "other"), ("1.png", "second"))
    rows = [{"image": image, "caption": caption} for image, caption in pairs]
    table = write_table(tmp_path, rows, "pairs.csv")
    assert run("shard", "--csv", table, "--drop-duplicates").returncode == 0
    out = tmp_path / "shards" / "pairs"
    assert rejected(out) == {0: "empty caption", 3: "duplicate"}
    assert {d["row"] for d in described(out)} == {1, 2}


def test_shards_of_another_job_are_never_taken_for_this_ones(run, small, tmp_path):
    """Two jobs that start in one folder at the same moment, or a lost task of an old job that comes back."""
    (tmp_path / "3.png").unlink()
    flags = ("--csv", small, "--samples-per-shard", 10)
    for seed in (1, 2):
        begun = run("shard", *flags, "--seed", seed, "--out", f"{seed}/set", "--max-rejected", "0")
        assert begun.returncode == 1
    shutil.copy(tmp_path / "2" / "set" / "plan.json", tmp_path / "1" / "set" / "plan.json")
    done = run("shard", *flags, "--seed", 2, "--out", "1/set")
    assert done.returncode == 1
    assert "another job has written into this folder" in done.stderr
    assert not (tmp_path / "1" / "set" / "manifest.json").exists()


def test_what_killed_tasks_left_goes_with_the_end_of_the_job(run, small, hashes, tmp_path):
    flags = ("--csv", small, "--samples-per-shard", 10, "--drop-duplicates")
    assert run("shard", *flags, "--out", "a/set").returncode == 0
    out = tmp_path / "b" / "set"
    out.mkdir(parents=True)
    left = (".hashes-000000.bin.1f.tmp", ".index.bin.2f.tmp", ".set-000002.tar.3f.tmp", ".plan.json.4f.tmp")
    for name in left:
        (out / name).write_bytes(b"half")
    for index in (0, 1, 0, 1):
        assert run("shard", *flags, "--out", "b/set", "--task", f"{index}/2").returncode == 0
    assert hashes(tmp_path / "b") == hashes(tmp_path / "a")


def test_too_many_rejected_rows_fail_the_job_and_a_higher_limit_goes_on(run, small, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    done = run("shard", "--csv", small, "--max-rejected", "9%", "--samples-per-shard", 10)
    assert done.returncode == 1
    assert "3 of 30 rows were rejected, more than --max-rejected 9% allows" in done.stderr
    out = tmp_path / "shards" / "train"
    assert not (out / "manifest.json").exists()
    assert rejected(out) == dict.fromkeys(range(3), "missing")
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert run("shard", "--csv", small, "--max-rejected", "0.1", "--samples-per-shard", 10).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == times
    assert len(open_dataset(str(out))) == 27


def test_several_tables_are_one(run, small, write_table, tmp_path):
    rows = [{"image": f"{n}.png", "caption": f"again {n}", "note": "late"} for n in range(5)]
    (tmp_path / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("shard", "--csv", small, "late.jsonl").returncode == 0
    kept = {d["row"]: d for d in described(tmp_path / "shards" / "train")}
    assert sorted(kept) == list(range(35))
    assert kept[33] == {"image": "3.png", "row": 33, "note": "late"}
    assert kept[3] == {"image": "3.png", "row": 3, "licence": "CC 3"}


def test_a_dry_run_tells_the_plan_and_writes_nothing(run, articles, tmp_path):
    flags = ("--csv", articles, "--out", "a", *SPLIT, "--samples-per-shard", 10)
    done = run("shard", *flags, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "a").exists()
    told = {
        name: (int(rows), int(shards))
        for name, rows, shards in re.findall(r"a/(\w+): (\d+) rows?, (\d+) shards?", done.stdout)
    }
    told_bytes = float(re.search(r"disk: about ([\d.]+) MB; [\d,.]+ MB are free there", done.stdout)[1])
    assert "of 120 rows tried, 0 would be rejected" in done.stdout
    assert run("shard", *flags).returncode == 0
    manifests = {name: open_dataset(str(tmp_path / "a" / name)).manifest for name in told}
    assert told == {name: (m.samples, len(m.shards)) for name, m in manifests.items()}
    assert told_bytes == pytest.approx(sum(m.total_bytes for m in manifests.values()) / 1e6, rel=0.2)


def test_a_dry_run_of_one_row_tells_of_one_shard(run, picture, write_table, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    table = write_table(tmp_path, [{"image": "a.png", "caption": "x"}])
    done = run("shard", "--csv", table, "--out", "one", "--dry-run")
    assert "one: 1 row, 1 shard (one-000000.tar), about" in done.stdout


@pytest.mark.parametrize("extra", [(), ("--drop-duplicates", *SPLIT)])
def test_tasks_share_the_work_and_the_last_one_writes_the_manifest(run, articles, hashes, tmp_path, extra):
    flags = ("--csv", articles, "--samples-per-shard", 7, *extra)
    assert run("shard", *flags, "--out", "a/set").returncode == 0
    said = [
        run("shard", *flags, "--out", "b/set", "--task", f"{index}/3").stdout
        for _ in range(2 if extra else 1)  # one round for the hashes, one for the shards
        for index in (2, 0, 1)
    ]
    assert hashes(tmp_path / "b") == hashes(tmp_path / "a")
    assert ("this task's images are hashed" if extra else "of other tasks not yet") in said[0]
    assert "of other tasks not yet" in said[1]


def test_tasks_at_the_same_time_end_with_the_same_bytes(run, start, articles, hashes, tmp_path):
    """As a SLURM array starts them; whichever ends last finishes the job, or several at once."""
    flags = ("--csv", articles, "--samples-per-shard", 2, "--workers", 1)
    assert run("shard", *flags, "--out", "a/set").returncode == 0
    slurm = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "1"}
    tasks = [
        start("shard", *flags, "--out", "b/set", SLURM_ARRAY_TASK_ID=str(number), **slurm)
        for number in (1, 2)
    ]
    said = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert hashes(tmp_path / "b") == hashes(tmp_path / "a")


def test_a_second_job_leaves_the_folder_to_the_first(run, start_shard, articles, hashes, tmp_path):
    flags = ("--csv", articles, "--samples-per-shard", 10, "--workers", 1)
    assert run("shard", *flags, "--out", "a/set").returncode == 0
    job = start_shard(*flags, "--out", "b/set")
    while not (tmp_path / "b/set/plan.json").exists():
        assert job.poll() is None
        time.sleep(0.002)
    os.killpg(job.pid, signal.SIGSTOP)
    for way in ((), ("--overwrite",), ("--task", "0/2")):
        second = run("shard", *flags, "--out", "b/set", *way)
        assert (second.returncode, "another process is at work" in second.stderr) == (2, True), second.stderr
    os.killpg(job.pid, signal.SIGCONT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert hashes(tmp_path / "b") == hashes(tmp_path / "a")


def test_sigterm_finishes_the_shards_in_work(shared, start_shard, sample_shards, hashes, tmp_path):
    table, out = shared / "pmc_sample" / "train.csv", tmp_path / "sample" / "train"
    flags = ("--csv", table, "--out", out, "--samples-per-shard", 25, "--workers", 2)
    job = start_shard(*flags)
    while not list(out.glob(".*.tar.*.tmp")):
        assert job.poll() is None
        time.sleep(0.01)
    in_work = {path.name.split(".tar")[0][1:] for path in out.glob(".*.tar.*.tmp")}
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert (job.returncode, "the same command goes on with the others" in said) == (143, True), said
    assert in_work <= {path.stem for path in out.glob("*.tar")}
    assert not list(out.glob(".*"))
    assert len(list(out.glob("*.tar"))) < 9
    assert start_shard(*flags).wait(60) == 0
    assert len(open_dataset(str(out))) == 225


def test_a_task_never_overwrites_what_the_others_wrote(run, articles, hashes, tmp_path):
    flags = ("--csv", articles, "--out", "a/set")
    assert run("shard", *flags).returncode == 0
    before = hashes(tmp_path / "a")
    done = run("shard", *flags, "--seed", 1, "--task", "0/2", "--overwrite")
    assert (done.returncode, "delete the old data set first" in done.stderr) == (2, True)
    assert hashes(tmp_path / "a") == before


def test_a_shard_cut_short_after_the_job_is_written_again(run, articles, hashes, tmp_path):
    assert run("shard", "--csv", articles, "--out", "a/set").returncode == 0
    before = hashes(tmp_path / "a")
    shard = tmp_path / "a" / "set" / "set-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-5000])
    assert "since gone or cut short: 1 shard" in run("shard", "--csv", articles, "--out", "a/set").stdout
    assert hashes(tmp_path / "a") == before


def test_a_job_whose_rows_were_all_rejected_can_be_given_again_once_they_are_mended(
    run, small, picture, tmp_path
):
    images = {f"{number}.png": (tmp_path / f"{number}.png").read_bytes() for number in range(30)}
    for name in images:
        (tmp_path / name).write_bytes(b"")
    done = run("shard", "--csv", small)
    assert (done.returncode, "all 30 rows" in done.stderr, "empty file" in done.stderr) == (1, True, True)
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    assert run("shard", "--csv", small).returncode == 0
    assert len(open_dataset(str(tmp_path / "shards" / "train"))) == 30


def test_a_plan_that_is_no_plan_is_said(run, articles, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "plan.json").write_text("[1]")
    done = run("shard", "--csv", articles, "--out", "a")
    assert (done.returncode, "a/plan.json: damaged" in done.stderr) == (1, True), done.stderr
