"""Training over images that cannot be decoded: others stand in, or the run stops, as the flags say."""

import json

import pytest

from tests.figures import write_figures

SAMPLES, BROKEN = 120, (7, 40, 41, 90)


@pytest.fixture
def train(run, tmp_path):
    data = write_figures(tmp_path / "d", SAMPLES, broken=BROKEN)
    flags = ["--train-data", data, "--model", "tiny", "--batch-size", 20, "--epochs", 1, "--log-every", 2]
    return lambda *more: run("train", *flags, "--name", "bad", *more)


def test_training_goes_on_with_others_in_their_place_which_it_names_and_counts(train, tmp_path):
    done = train()
    assert done.returncode == 0, done.stderr
    named = [line for line in done.stderr.splitlines() if line.startswith("substituted: ")]
    assert sorted(line.split("image of sample ")[1][:6] for line in named) == [f"{n:06d}" for n in BROKEN]
    entries = (tmp_path / "runs" / "bad" / "metrics.jsonl").read_text().splitlines()
    counts = [entry["substituted_samples"] for entry in map(json.loads, entries) if entry["kind"] == "train"]
    assert counts[-1] == len(BROKEN)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--on-bad-sample", "fail"], "--on-bad-sample substitute lets another sample stand in for it"),
        (["--max-bad-samples", "0"], "more than --max-bad-samples 0% allows"),
    ],
)
def test_training_stops_at_the_first_one_where_it_is_to(train, flags, said):
    done = train(*flags)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert said in done.stderr.splitlines()[-1]
