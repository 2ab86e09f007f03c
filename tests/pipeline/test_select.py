"""`pipeline.select`, run as a user runs it: the samples asked for, once each, and every other one named."""

import csv
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import webdataset as wds
from PIL import Image

from shards import Folder, MemberNames, Sample, open_dataset, write_manifest, write_shard

LICENCES = ("CC BY", "CC BY-NC", "CC0")


@pytest.fixture
def write_data_set(tmp_path, picture):
    """`write_data_set("a", 30, first=0)`: a data set of shards of 10 samples, numbered from `first` on."""

    def write(name: str, count: int = 30, first: int = 0, *, names=MemberNames(), **changes) -> Path:  # noqa: B008
        folder, written = Folder(tmp_path / name), []
        for start in range(first, first + count, 10):
            samples = [
                (f"{n:09d}", changes.get(f"sample_{n}") or members(n)) for n in range(start, start + 10)
            ]
            written.append(write_shard(folder, f"{name}-{(start - first) // 10:06d}.tar", samples))
        write_manifest(folder, written, {"tool": "test"}, member_names=names)
        return tmp_path / name

    def members(number: int) -> dict[str, bytes]:
        columns = {
            "image": f"figures/PMC{number // 2}_Fig{number}.png",
            "row": number,
            "licence": LICENCES[number % 3],
            "score": f"{number / 100:.2f}" if number % 10 else "n/a",
            "article": number // 2,
        }
        return {
            "png": picture(number),
            "txt": f"caption {number}".encode(),
            "json": json.dumps(columns).encode(),
        }

    return write


def samples(folder: Path | str) -> list[Sample]:
    dataset = open_dataset(str(folder))
    return [dataset.read_sample(number) for number in range(len(dataset))]


def keys(folder: Path | str) -> list[int]:
    return [int(sample.key) for sample in samples(folder)]


@pytest.fixture
def select(run):
    """`select(…)`: the command in one process, which does the same and starts sooner."""

    def run_select(*arguments: object):
        return run("select", *arguments, "--workers", 1)

    return run_select


def image_of(number: int) -> str:
    return f"figures/PMC{number // 2}_Fig{number}.png"


def test_a_view_has_exactly_the_samples_asked_for_and_copies_none(run, write_data_set, tmp_path):
    source = write_data_set("a")
    done = run("select", "--data", source, "--out", "v", "--where", "licence == 'CC BY' and row >= 9")
    assert done.returncode == 0, done.stderr
    wanted = [n for n in range(30) if n % 3 == 0 and n >= 9]
    assert keys(tmp_path / "v") == wanted
    by_number = {int(sample.key): sample for sample in samples(source)}
    assert [s.members for s in samples(tmp_path / "v")] == [by_number[n].members for n in wanted]
    assert sorted(os.listdir(tmp_path / "v")) == [
        "checksums.bin", "index.bin", "manifest.json", "plan.json", "selected.bin",
    ]  # fmt: skip
    assert f"kept: {len(wanted)} of 30 samples" in done.stdout
    assert "--rewrite" in done.stdout, "two thirds of what is read is not used: worth a word"


def test_shards_of_which_nothing_is_left_are_not_in_the_view(select, write_data_set, tmp_path):
    assert select("--data", write_data_set("a"), "--out", "v", "--where", "10 <= row < 15").returncode == 0
    (record,) = open_dataset(str(tmp_path / "v")).manifest.shards
    assert (record.name, record.folder) == ("a-000001.tar", "../a")


def test_values_that_are_no_numbers_do_not_match_and_are_counted(select, write_data_set, tmp_path):
    done = select("--data", write_data_set("a"), "--out", "v", "--where", "not score > 0.05")
    assert keys(tmp_path / "v") == [1, 2, 3, 4, 5]
    assert "22 that do not meet --where" in done.stdout
    assert "3 with a value for --where that is missing or cannot be compared" in done.stdout


IDS = {
    "000000007": [7],
    image_of(7): [7],
    "PMC3_Fig7.png": [7],
    "figures/PMC3_Fig7": [7],
    "PMC3_Fig7": [7],
    "PMC3": [6, 7],
    "PMC1": [2, 3],
}


@pytest.mark.parametrize("an_id", IDS)
def test_an_id_takes_out_its_samples(select, write_data_set, tmp_path, an_id):
    (tmp_path / "ids.txt").write_text(an_id)
    done = select("--data", write_data_set("a"), "--out", "v", "--exclude", "ids.txt")
    assert keys(tmp_path / "v") == [n for n in range(30) if n not in IDS[an_id]]
    assert "WARNING" not in done.stdout


def test_ids_that_match_nothing_are_listed(run, write_data_set, tmp_path):
    (tmp_path / "ids.txt").write_bytes(
        "\ufeff# withdrawn\r\nPMC2\r\n\r\n  PMC3_Fig7.png \r\nPMC33\r\nFig7\r\nPMC2\r\n".encode()
    )
    done = run("select", "--data", write_data_set("a"), "--out", "v", "--exclude", "ids.txt")
    assert done.returncode == 0
    assert keys(tmp_path / "v") == [n for n in range(30) if n not in (4, 5, 7)]
    assert "3 excluded by id" in done.stdout
    assert "ids in --exclude: 4, of which 2 matched" in done.stdout
    assert "WARNING: 2 ids matched no sample: Fig7, PMC33" in done.stdout


def test_ids_may_be_values_of_a_column(select, write_data_set, tmp_path):
    (tmp_path / "ids.txt").write_text("4\n9\n")
    source = write_data_set("a")
    arguments = ["--data", source, "--exclude", "ids.txt", "--group-key", "article"]
    assert select(*arguments, "--out", "v").returncode == 0
    assert keys(tmp_path / "v") == [n for n in range(30) if n // 2 not in (4, 9)]


def test_samples_without_json_have_a_key_and_a_caption_still(select, write_data_set, tmp_path, picture):
    plain = {"png": picture(3), "txt": b"no columns"}
    source = write_data_set(
        "a", sample_3=plain, sample_4={**plain, "json": b"[1]"}, sample_5={**plain, "json": b"{"}
    )
    where = "caption == 'no columns' and key < '000000005' or row == 8"
    done = select("--data", source, "--out", "v", "--where", where)
    assert keys(tmp_path / "v") == [3, 4, 8]
    assert "3 samples without JSON" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--where", "licens == 'CC BY'"],
            "no sample has a column 'licens'; there are: key, caption, article, image",
        ),
        (["--where", "licence = 'CC BY'"], "--where: not an expression"),
        (["--exclude", "nowhere.txt"], "nowhere.txt: No such file"),
        (["--exclude", "."], "Is a directory"),
        (["--group-key", "article"], "--exclude"),
        (["--resize", "100"], "--resize is about packing"),
        (["--samples-per-shard", "10"], "--samples-per-shard is about packing"),
        (["--rewrite", "--quality", "0"], "--quality 0"),
        (["--merge", "nowhere"], "no data set here"),
        (["--workers", "0"], "--workers 0"),
        (["--out", "a", "--overwrite"], "what --data"),
    ],
)
def test_wrong_requests_are_refused_and_leave_nothing(run, write_data_set, tmp_path, arguments, message):
    write_data_set("a")
    done = run("select", "--data", "a", *(() if "--out" in arguments else ("--out", "v")), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "v").exists()
    assert len(samples(tmp_path / "a")) == 30


def test_an_empty_selection_fails_and_leaves_nothing(select, write_data_set, tmp_path):
    done = select("--data", write_data_set("a"), "--out", "v", "--where", "row > 99")
    assert done.returncode == 1
    assert "no sample is left" in done.stderr
    assert not (tmp_path / "v").exists()


def test_data_sets_are_merged_in_the_order_given(select, write_data_set, tmp_path):
    write_data_set("a", 20)
    write_data_set("b", 10, first=50)
    write_data_set("c", 10, first=5)  # some of its keys are keys of `a`
    done = select("--data", "a", "--merge", "b", "c", "--out", "all")
    assert done.returncode == 0, done.stderr
    assert keys(tmp_path / "all") == [*range(20), *range(50, 60), *range(5, 15)]
    assert "selected.bin" not in os.listdir(tmp_path / "all")
    assert "40 samples in 4 shards" in done.stdout


@pytest.mark.parametrize("again", ["a", "./a/", "copy", "view"])
def test_a_shard_that_would_come_twice_is_refused(select, write_data_set, tmp_path, again):
    write_data_set("a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    select("--data", "a", "--out", "view", "--where", "row > 20")
    done = select("--data", "a", again, "--out", "v")
    assert done.returncode == 2
    assert ".tar comes twice" in done.stderr


def test_a_view_of_a_view_does_not_need_the_view(select, write_data_set, tmp_path):
    write_data_set("a")
    select("--data", "a", "--out", "deep/first", "--where", "row >= 5")
    done = select("--data", "deep/first", "--out", "second", "--where", "licence == 'CC0'")
    assert "of 25 samples; left out" in done.stdout
    shutil.rmtree(tmp_path / "deep")
    assert keys(tmp_path / "second") == [n for n in range(5, 30) if n % 3 == 2]
    assert {record.folder for record in open_dataset(str(tmp_path / "second")).manifest.shards} == {"../a"}


def test_the_same_request_again_does_nothing_and_another_is_refused(select, write_data_set, tmp_path, hashes):
    write_data_set("a")
    (tmp_path / "ids.txt").write_text("PMC1\n")
    request = ["--data", "a", "--out", "v", "--where", "row > 3", "--exclude", "ids.txt"]
    assert select(*request).returncode == 0
    before = hashes(tmp_path / "v")
    assert "nothing to do" in select(*request).stdout
    (tmp_path / "ids.txt").write_text("PMC2\n")
    refused = select(*request)
    assert refused.returncode == 2
    assert "exclude_sha256" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert hashes(tmp_path / "v") == before
    assert select(*request, "--overwrite").returncode == 0
    assert keys(tmp_path / "v") == [n for n in range(4, 30) if n not in (4, 5)]


def test_a_request_that_fails_does_not_cost_the_data_set_it_was_to_replace(
    select, write_data_set, tmp_path, hashes
):
    write_data_set("a")
    select("--data", "a", "--out", "v", "--where", "row > 3")
    before = hashes(tmp_path / "v")
    for where, code in (("oops > 3", 2), ("row > 99", 1)):
        assert select("--data", "a", "--out", "v", "--where", where, "--overwrite").returncode == code
    assert hashes(tmp_path / "v") == before


def test_a_view_never_replaces_the_shards_it_is_made_of(select, write_data_set, hashes):
    """The folder of the shards is refused, too, where --data is a view on them."""
    before = hashes(write_data_set("a"))
    select("--data", "a", "--out", "v", "--where", "row > 3")
    refused = select("--data", "v", "--out", "a", "--overwrite", "--rewrite")
    assert refused.returncode == 2
    assert hashes(write_data_set("a")) == before


def test_member_names_that_go_on_from_one_another_are_merged(select, write_data_set, tmp_path):
    write_data_set("a", 10, names=MemberNames(("png",)))
    write_data_set("b", 10, first=10, names=MemberNames(("png", "jpg")))
    assert select("--data", "a", "b", "--out", "v").returncode == 0
    assert open_dataset(str(tmp_path / "v")).manifest.member_names.image_extensions == ("png", "jpg")
    assert keys(tmp_path / "v") == list(range(20))


def test_another_order_of_image_extensions_is_no_view(select, write_data_set, tmp_path):
    write_data_set("a", 10, names=MemberNames(("png", "jpg")))
    write_data_set("b", 10, first=10, names=MemberNames(("jpg", "png")))
    refused = select("--data", "a", "b", "--out", "v")
    assert refused.returncode == 2
    assert "add --rewrite" in refused.stderr
    assert not (tmp_path / "v").exists()


def test_member_names_that_contradict_one_another_are_only_rewritten(
    select, write_data_set, tmp_path, picture
):
    """A sample that has both a `png` and a `thumb.png`: which is the image is for its own data set to say."""
    both = {"png": picture(1), "thumb": picture(2), "txt": b"text", "json": b'{"caption": "in JSON"}'}
    write_data_set(
        "a",
        10,
        names=MemberNames(("thumb", "png"), "json", "caption"),
        **{f"sample_{n}": both for n in range(10)},
    )
    write_data_set("b", 10, first=10, names=MemberNames(("png", "thumb")))
    refused = select("--data", "a", "b", "--out", "v")
    assert refused.returncode == 2
    assert "caption json, under 'caption'" in refused.stderr
    done = select("--data", "a", "b", "--out", "v", "--rewrite")
    assert done.returncode == 0, done.stderr
    found = samples(tmp_path / "v")
    assert open_dataset(str(tmp_path / "v")).manifest.member_names == MemberNames(caption_lines=True)
    foreign = [sample for sample in found if sample.caption == "in JSON"]
    assert len(foreign) == 10
    for sample in foreign:
        assert bytes(sample.image) == picture(2)
        assert bytes(sample.members["other.png"]) == picture(1)
        assert bytes(sample.members["other.txt"]) == b"text"
        assert json.loads(bytes(sample.members["json"]))["caption"] == "in JSON"
    assert len(found) == 20


def test_rewriting_keeps_every_byte_under_new_keys_in_a_new_order(run, write_data_set, tmp_path):
    old = {sample.key: sample for sample in samples(write_data_set("a"))}
    done = run(
        "select", "--data", "a", "--out", "r", "--rewrite", "--samples-per-shard", 8, "--where", "row != 4"
    )
    assert done.returncode == 0, done.stderr
    new = samples(tmp_path / "r")
    assert [sample.key for sample in new] == [f"{slot:09d}" for slot in range(29)]
    order = []
    for sample in new:
        columns = json.loads(bytes(sample.members["json"]))
        before = old[columns.pop("key")]
        assert columns == json.loads(bytes(before.members["json"]))
        assert (bytes(sample.image), sample.caption) == (bytes(before.image), before.caption)
        order.append(columns["row"])
    assert sorted(order) == [n for n in range(30) if n != 4]
    assert order != sorted(order)
    manifest = open_dataset(str(tmp_path / "r")).manifest
    assert [(s.name, s.samples, s.folder) for s in manifest.shards] == [
        (f"r-00000{number}.tar", count, "") for number, count in enumerate((8, 8, 8, 5))
    ]
    assert not manifest.selection
    urls = [str(tmp_path / "r" / record.name) for record in manifest.shards]
    assert [s["__key__"] for s in wds.WebDataset(urls, shardshuffle=False)] == [sample.key for sample in new]


def test_rewriting_does_not_depend_on_workers_but_on_the_seed(run, write_data_set, tmp_path, hashes):
    write_data_set("a")
    made = []
    for workers, seed in ((1, 0), (3, 0), (1, 1)):
        arguments = ["--rewrite", "--samples-per-shard", 7, "--seed", seed, "--workers", workers]
        assert run("select", "--data", "a", "--out", "r", *arguments, "--overwrite").returncode == 0
        made.append(hashes(tmp_path / "r"))
    assert made[0] == made[1]
    assert made[0]["r-000000.tar"] != made[2]["r-000000.tar"]


def test_rewriting_again_keeps_the_first_key(select, write_data_set, tmp_path):
    write_data_set("a", 10)
    select("--data", "a", "--out", "r", "--rewrite")
    select("--data", "r", "--out", "s", "--rewrite", "--seed", 5)
    columns = [json.loads(bytes(sample.members["json"])) for sample in samples(tmp_path / "s")]
    assert [int(c["key"]) for c in columns] == [c["row"] for c in columns]
    (tmp_path / "ids.txt").write_text("000000003\nPMC1_Fig3\n")
    select("--data", "s", "--out", "t", "--exclude", "ids.txt")
    assert 3 not in [json.loads(bytes(sample.members["json"]))["row"] for sample in samples(tmp_path / "t")]


def test_rewriting_keeps_all_captions_of_an_image(select, write_data_set, tmp_path, picture):
    several = {"png": picture(3), "json": b'{"texts": ["an image,\\nas CT", "a scan"], "row": 3}'}
    plain = {
        f"sample_{n}": {"png": picture(n), "json": b'{"texts": "caption %d"}' % n}
        for n in range(10)
        if n != 3
    }
    names = MemberNames(caption_extension="json", caption_key="texts")
    data = write_data_set("several", 10, names=names, sample_3=several, **plain)
    assert select("--data", data, "--rewrite", "--out", tmp_path / "new").returncode == 0
    captions = sorted(sample.captions for sample in samples(tmp_path / "new"))
    expected = [("an image, as CT", "a scan"), *((f"caption {n}",) for n in range(10) if n != 3)]
    assert captions == sorted(expected)


def test_samples_that_cannot_be_rewritten_are_listed(select, write_data_set, tmp_path, picture):
    text, columns = b"caption", b'{"row": 1}'
    source = write_data_set(
        "a",
        sample_2={"png": picture(2)[:60], "txt": text, "json": columns},
        sample_3={"png": b"hello", "txt": text, "json": columns},
        sample_4={"png": picture(4), "txt": b"  ", "json": columns},
    )
    with open(source / "a-000001.tar", "r+b") as file:
        file.seek(600)
        file.write(b"!")
    done = select("--data", source, "--out", "r", "--rewrite")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "r" / "rejected.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [(int(row), image) for row, image, _ in rows[1:]] == [
        (2, "000000002"), (3, "000000003"), (4, "000000004"), (10, "a-000001.tar at byte 0"),
    ]  # fmt: skip
    assert [reason for *_, reason in rows[2:]] == ["not an image", "empty caption", "damaged sample"]
    assert "rejected samples: 4" in done.stdout
    assert len(samples(tmp_path / "r")) == 26


def test_a_data_set_of_which_nothing_can_be_rewritten_fails(select, write_data_set, tmp_path):
    broken = {"png": b"hello", "txt": b"caption"}
    write_data_set("a", 10, **{f"sample_{n}": broken for n in range(10)})
    done = select("--data", "a", "--out", "r", "--rewrite")
    assert done.returncode == 1
    assert "all 10 samples were rejected, 10 of them because: not an image" in done.stderr


def test_a_shard_that_is_gone_fails_the_rewriting(select, write_data_set, tmp_path):
    """Storage that does not answer is no reason to leave samples out."""
    (write_data_set("a") / "a-000002.tar").unlink()
    done = select("--data", "a", "--out", "r", "--rewrite")
    assert done.returncode == 1
    assert "a-000002.tar: the manifest lists this shard, but it is not there" in done.stderr
    assert not (tmp_path / "r" / "manifest.json").exists()


def test_rewriting_transcodes(select, write_data_set, tmp_path, picture):
    large = {"png": picture(9, size=(80, 60)), "txt": b"large", "json": b'{"row": 9}'}
    write_data_set("a", sample_9=large)
    done = select("--data", "a", "--out", "r", "--rewrite", "--resize", 30, "--format", "jpeg")
    assert done.returncode == 0, done.stderr
    for sample in samples(tmp_path / "r"):
        with Image.open(io.BytesIO(bytes(sample.members["jpg"]))) as image:
            assert image.format == "JPEG"
            assert image.size == ((40, 30) if sample.caption == "large" else (20, 20))
        assert "png" not in sample.members
    assert select("--data", "a", "--out", "r", "--rewrite", "--resize", 40).returncode == 2


def test_a_killed_rewriting_goes_on_where_it_was(start, write_data_set, select, tmp_path, hashes):
    write_data_set("a", 90)
    request = ["--data", "a", "--rewrite", "--samples-per-shard", "3", "--workers", "1"]
    assert select(*request, "--out", "undisturbed/r").returncode == 0
    job = start("select", *request, "--out", "r")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "r").glob("*.part.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").glob("*.tar")}
    assert 0 < len(kept) < 30
    assert not (tmp_path / "r" / "manifest.json").exists()
    assert select(*request, "--out", "r").returncode == 0
    described = [path for path in kept if path.stat().st_mtime_ns == kept[path]]
    assert len(described) >= len(kept) - 1, "at most the shard in work is written again"
    fresh, resumed = hashes(tmp_path / "undisturbed" / "r"), hashes(tmp_path / "r")
    different = {name for name in {*fresh, *resumed} if fresh.get(name) != resumed.get(name)}
    assert different <= {"plan.json", "manifest.json"}, "these name --data relative to --out"
    assert open_dataset(str(tmp_path / "r")).manifest.fingerprint == (
        open_dataset(str(tmp_path / "undisturbed" / "r")).manifest.fingerprint
    )


def test_shards_and_views_on_s3(run, select, write_data_set, tmp_path, s3):
    for path in write_data_set("a").iterdir():
        Folder(f"{s3}/select/a").write(path.name, path.read_bytes())
    remote = f"{s3}/select/a"
    where = ["--where", "licence == 'CC BY'"]
    for out in (f"{s3}/select/v", tmp_path / "local"):
        assert select("--data", remote, "--out", out, *where).returncode == 0
        assert keys(out) == list(range(0, 30, 3))
    assert select("--data", f"{s3}/select/v", "--out", f"{s3}/select/r", "--rewrite").returncode == 0
    assert len(samples(f"{s3}/select/r")) == 10
    assert "nothing to do" in select("--data", remote, "--out", f"{s3}/select/v", *where).stdout
    refused = select("--data", f"{s3}/select/v", "--out", remote, "--overwrite")
    assert refused.returncode == 2


# With real figures, through the commands that follow.


def streamed(run, tmp_path, data: Path | str, **how) -> list[str]:
    done = run("stream", "--data", data, "--batch-size", 5, "--keys", "keys.tsv", "--image-size", 32, **how)
    assert done.returncode == 0, done.stderr
    return [line.split("\t")[1] for line in (tmp_path / "keys.tsv").read_text().splitlines()]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_epoch_of_a_view_streams_each_sample_once(run, select, sample_shards, tmp_path, processes):
    where = "'CT' in caption or 'MRI' in caption or 'cell' in lower(caption)"
    data = sample_shards / "train"
    wanted = [
        sample.key
        for sample in samples(data)
        if any(word in text for word, text in (
            ("CT", sample.caption), ("MRI", sample.caption), ("cell", sample.caption.lower())
        ))
    ]  # fmt: skip
    assert select("--data", data, "--out", "v", "--where", where).returncode == 0
    got = streamed(run, tmp_path, tmp_path / "v", processes=processes)
    assert len(wanted) > 20
    assert sorted(got[: len(wanted)]) == sorted(wanted)


def test_merged_and_rewritten_real_figures_are_the_same_figures(select, sample_shards, tmp_path):
    """Train and valid merged, an article taken out, packed anew: the pictures are the old ones."""
    both = [sample_shards / "train", sample_shards / "valid"]
    old = {}
    for folder in both:
        for sample in samples(folder):
            old[json.loads(bytes(sample.members["json"]))["image"]] = sample
    article = next(name for name in old if name.startswith("PMC")).split("_")[0]
    (tmp_path / "withdrawn.txt").write_text(article)
    done = select("--data", *both, "--exclude", "withdrawn.txt", "--out", "v")
    assert "WARNING" not in done.stdout
    assert select("--data", "v", "--rewrite", "--out", "r", "--samples-per-shard", 50).returncode == 0
    expected = {name for name in old if not name.startswith(f"{article}_")}
    assert len(old) == 251
    assert len(expected) < 251
    found = set()
    for sample in samples(tmp_path / "r"):
        name = json.loads(bytes(sample.members["json"]))["image"]
        assert (bytes(sample.image), sample.caption) == (bytes(old[name].image), old[name].caption)
        found.add(name)
    assert found == expected
