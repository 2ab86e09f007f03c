"""`python -m pipeline.evaluate` with retrieval: subsets, groups, several captions, files, refusals."""

import json
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shards import Folder, MemberNames, open_dataset, write_manifest, write_shard
from tests.checkpoints import write_checkpoint
from tests.figures import write_figures


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The `latest` of a run of the tiny model."""
    return write_checkpoint(tmp_path_factory.mktemp("runs") / "r" / "checkpoints")


@pytest.fixture
def evaluate(run, checkpoint, tmp_path):
    """Run `pipeline.evaluate` into the folder `out`: its metrics.json, its ids and its arrays."""

    def run_evaluate(data, *flags, out="out", processes=1):
        words = ["--data", data, "--checkpoint", checkpoint, "--out", out, *flags]
        done = run("evaluate", *words, processes=processes)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / out / "metrics.json").read_text())
        with np.load(tmp_path / out / "retrieval.npz") as arrays:
            return found, (tmp_path / out / "ids.txt").read_text().split(), dict(arrays)

    return run_evaluate


def write_shards(folder, shards, captions=False):
    """Shards by name, each a list of (key, members)."""
    target = Folder(folder)
    written = [write_shard(target, name, iter(samples)) for name, samples in shards.items()]
    write_manifest(target, written, {}, member_names=MemberNames(caption_lines=captions))
    return target.address


def samples_of(address):
    """(key, members) of all samples of a data set."""
    dataset = open_dataset(address)
    samples = [dataset.read_sample(number) for number in range(len(dataset))]
    return [(s.key, {name: bytes(data) for name, data in s.members.items()}) for s in samples]


def test_a_limit_takes_the_same_samples_whatever_the_shards_batches_and_processes(evaluate, tmp_path):
    samples = samples_of(write_figures(tmp_path / "whole", 30))
    parted = write_shards(tmp_path / "parted", {"b.tar": samples[20:], "a.tar": samples[:20][::-1]})
    _, ids, arrays = evaluate(tmp_path / "whole", "--limit", 12)
    other, other_ids, other_arrays = evaluate(parted, "--limit", 12, "--batch-size", 5, processes=2)
    assert len(ids) == 12
    assert ids == sorted(ids), "in the order of the data"
    assert sorted(other_ids) == ids
    assert other["subset"]["limit"] == 12
    ranks = dict(zip(arrays["ids"], arrays["image_to_text"], strict=True))
    others = dict(zip(other_arrays["ids"], other_arrays["image_to_text"], strict=True))
    assert others == ranks
    smaller = evaluate(tmp_path / "whole", "--limit", 5)[1]
    assert set(smaller) < set(ids)
    assert set(evaluate(tmp_path / "whole", "--limit", 12, "--seed", 1)[1]) != set(ids)


def test_ids_pin_samples_also_those_whose_keys_repeat(evaluate, tmp_path):
    samples = samples_of(write_figures(tmp_path / "whole", 12))
    renamed = [(f"{number % 4:04d}", members) for number, (_, members) in enumerate(samples)]
    data = write_shards(
        tmp_path / "theirs", {"0.tar": renamed[:4], "1.tar": renamed[4:8], "2.tar": renamed[8:]}
    )
    found, ids, _ = evaluate(data, "--limit", 7)
    assert len(set(ids)) == found["pairs"] == 7
    assert all("@" in name for name in ids)
    pinned, same_ids, _ = evaluate(data, "--ids", tmp_path / "out" / "ids.txt", out="again")
    assert same_ids == ids
    assert pinned["metrics"] == found["metrics"]


def test_samples_with_a_value_in_common_are_a_group(evaluate, tmp_path):
    data = write_figures(tmp_path / "d", 12)  # `licence` has three values
    found, _, arrays = evaluate(data, "--group-key", "licence")
    assert found["retrieval"]["groups"] == 3
    assert np.bincount(arrays["group"]).tolist() == [4, 4, 4]
    assert (arrays["group_image_to_text"] <= arrays["image_to_text"]).all()
    assert arrays["group_image_to_text"].max() <= 9, "eight are of other groups"
    chance = found["retrieval"]["chance"]
    assert chance["group_image_to_text_mean_rank"] == pytest.approx(1 + 8 / 5)


def test_all_captions_of_an_image_are_asked_and_answer_by_groups(evaluate, tmp_path):
    data = write_figures(tmp_path / "d", 9, captions=3)
    found, _, arrays = evaluate(data, "--batch-size", 4)
    assert (found["pairs"], found["retrieval"]["captions"]) == (9, 27)
    assert len(arrays["group_text_to_image"]) == 27
    assert len(arrays["text_to_image"]) == 9
    whole, _, others = evaluate(data, "--batch-size", 9, out="whole", processes=2)
    assert np.array_equal(arrays["group_text_to_image"], others["group_text_to_image"])
    assert whole["metrics"] == found["metrics"]


def test_what_is_left_says_what_the_figures_are_of(evaluate, checkpoint, tmp_path):
    data = write_figures(tmp_path / "d", 20)
    found, ids, _ = evaluate(data)
    assert ids == [f"{number:06d}" for number in range(20)]
    assert found["fingerprint"] == open_dataset(data).manifest.fingerprint
    assert len(found["checkpoint_sha256"]) == 64
    assert found["preprocessing"]["image_size"] == 64
    assert {"torch", "transformers", "pmc-clip-stream"} <= found["versions"].keys()
    assert (found["subset"], found["seed"]) == (None, 0)
    name = "image_to_text_recall_at_10"
    low, high = found["intervals"][name]
    assert low <= found["metrics"][name] <= high
    bounds = found["retrieval"]
    assert bounds["pessimistic"][name] <= found["metrics"][name] <= bounds["optimistic"][name]
    assert found["intervals"].keys() == found["metrics"].keys() == bounds["chance"].keys()


def test_figures_of_a_run_are_in_its_tensorboard(run, tmp_path):
    write_checkpoint(tmp_path / "r" / "checkpoints")
    (tmp_path / "r" / "tensorboard").mkdir()
    data = write_figures(tmp_path / "d", 12)
    done = run("evaluate", "--data", data, "--checkpoint", "r/checkpoints/latest", "--limit", 8)
    assert done.returncode == 0, done.stderr
    (metrics,) = (tmp_path / "r" / "evaluation").glob("d-step-*-8/metrics.json")
    found = json.loads(metrics.read_text())
    board = EventAccumulator(str(tmp_path / "r" / "tensorboard" / "evaluation"))
    board.Reload()
    (event,) = board.Scalars("evaluation/d/image_to_text_mean_rank")
    assert event.step == found["step"]
    assert event.value == pytest.approx(found["metrics"]["image_to_text_mean_rank"])


def test_the_report_is_whole_in_a_browser(evaluate, browser, tmp_path):
    data = write_figures(tmp_path / "d", 25, captions=2)
    found, _, _ = evaluate(data)
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if "://" in request.url[5:] else None)
    page.goto((tmp_path / "out" / "report.html").as_uri())
    assert not said
    shown = page.inner_text("table >> nth=0")
    assert f"{found['metrics']['image_to_text_recall_at_10']:.1%}" in shown
    low, high = found["intervals"]["text_to_image_median_rank"]
    assert f"[{low:,.1f}, {high:,.1f}]" in shown
    headings = page.locator("h2").all_inner_texts()
    assert headings == ["Retrieval", "Recall and ranks", "Queries at random", "Best queries", "Worst queries"]
    assert page.locator(".row .query").count() == 3 * 2 * 6
    assert page.locator("svg.chart").count() == 2
    broken = "Array.from(document.images).filter(i => !(i.complete && i.naturalWidth > 0)).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.images.length") > 36
    for width in (1280, 420):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "0"], "--limit 0: it must be at least 1"),
        (["--limit", "13"], "--limit 13: there are only 12 samples in the data"),
        (["--test-2000"], "--test-2000: there are only 12 samples in the data"),
        (["--limit", "3", "--test-2000"], "--limit and --test-2000 each say which samples to evaluate"),
        (["--ids", "none.txt"], "--ids none.txt: No such file"),
        (["--ids", "empty.txt"], "--ids empty.txt: there is no id in it"),
        (["--ids", "wrong.txt"], "--ids wrong.txt: 2 of 3 ids are not in the data"),
        (["--group-key", "article"], "no column article: none of 12 samples"),
        (["--group-key", "note"], "--group-key note: 10 of 12 samples have no such column"),
        (["--group-key", "licence", "--task", "mlm"], "--group-key is for --task retrieval"),
        (["--task", "singing"], "singing"),
        (["--out", "empty.txt"], "--out empty.txt"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(run, checkpoint, tmp_path, flags, message):
    data = write_figures(tmp_path / "d", 12)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "wrong.txt").write_text("000001\nsomething\n000001\n")
    done = run("evaluate", "--data", data, "--checkpoint", checkpoint, *flags)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message in done.stderr


def test_evaluations_are_compared_and_other_samples_are_refused(run, evaluate, checkpoint, tmp_path):
    data = write_figures(tmp_path / "d", 40)
    evaluate(data, out="a")
    other = write_checkpoint(tmp_path / "s" / "checkpoints", seed=1)
    done = run("evaluate", "--data", data, "--checkpoint", other, "--out", "b")
    assert done.returncode == 0, done.stderr
    done = run("compare", "a/metrics.json", "b", "--out", "both")
    assert done.returncode == 0, done.stderr
    assert "image_to_text_recall_at_10" in done.stdout
    assert "Models side by side" in (tmp_path / "both" / "comparison.html").read_text()
    (told,) = json.loads((tmp_path / "both" / "comparison.json").read_text())
    figures = {row["name"]: row for row in told["differences"]}
    first, second = (json.loads((tmp_path / n / "metrics.json").read_text())["metrics"] for n in "ab")
    row = figures["text_to_image_mean_rank"]
    assert row["difference"] == pytest.approx(
        second["text_to_image_mean_rank"] - first["text_to_image_mean_rank"]
    )
    assert row["ends"][0] <= row["difference"] <= row["ends"][1]
    evaluate(data, "--limit", 20, out="c")
    for words, message in (
        (("a", "c"), "c is of other samples than a (20 and 40;"),
        (("a", "nowhere"), "nowhere: no evaluation here"),
        (("a",), "give at least two evaluations"),
    ):
        done = run("compare", *words)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    shutil.copytree(tmp_path / "b", tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.json").write_text("{")
    done = run("compare", "a", "damaged")
    assert (done.returncode, "damaged: not an evaluation" in done.stderr) == (1, True), done.stderr


def test_a_single_sample_is_found_at_once(evaluate, tmp_path):
    found, ids, _ = evaluate(write_figures(tmp_path / "d", 9), "--limit", 1)
    assert (found["pairs"], len(ids)) == (1, 1)
    assert found["metrics"]["image_to_text_mean_rank"] == 1
    assert found["retrieval"]["chance"]["text_to_image_recall_at_1"] == 1
