"""Going on from a checkpoint: on the same data only, and a refusal names what differs."""

from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.checkpoint import Checkpoint, DataState
from pipeline.training.resume import check_same_run, data_state
from pmc_clip import load_model_config
from shards import Folder, Mixture, UsageError, open_dataset, write_manifest, write_shard


@pytest.fixture
def datasets(tmp_path):
    """Three small data sets: a, b and c."""

    def write(name: str):
        folder = Folder(tmp_path / name)
        samples = ((f"{name}{i:03d}", {"jpg": b"no image", "txt": b"a caption"}) for i in range(30))
        write_manifest(folder, [write_shard(folder, "train-000000.tar", samples)], {})
        return open_dataset(folder.address)

    return {name: write(name) for name in "abc"}


def resume(before: DataState, now: Mixture, tmp_path: Path) -> None:
    """Check a saved and loaded checkpoint of a run on `before` against a run on `now`."""
    model = load_model_config("tiny")
    state = Checkpoint({}, {}, 1, 24, 24, before, model.to_dict(), "t", {"mlm": False})
    saved = state.save(Folder(tmp_path / "checkpoints"))
    check_same_run(Checkpoint.load(saved), saved, data=data_state(now), model=model, tokenizer="t", mlm=False)


def mix(datasets, names: str, lanes_of: list[int], seed: int = 0) -> Mixture:
    return Mixture([datasets[name] for name in names], lanes_of, seed)


@pytest.mark.parametrize(("names", "lanes_of"), [("a", [12]), ("ab", [8, 4]), ("cab", [4, 4, 4])])
def test_the_same_data_goes_on(datasets, tmp_path, names, lanes_of):
    resume(data_state(mix(datasets, names, lanes_of)), mix(datasets, names, lanes_of), tmp_path)


@pytest.mark.parametrize(
    ("names", "lanes_of", "seed", "message"),
    [
        ("ac", [8, 4], 0, r"another data set: b \(\w{64}\), here c \(\w{64}\); .* --train-data"),
        ("a", [12], 0, r"another data set: b \(\w{64}\), here nothing else"),
        ("abc", [4, 4, 4], 0, r"another data set: nothing else, here c \(\w{64}\)"),
        ("ba", [4, 8], 0, r"same data sets in another order: a\+b, here b\+a"),
        ("ab", [8, 4], 5, "another seed: 0, here 5; give --seed 0"),
        ("ab", [16, 8], 0, "another lanes: 12, here 24; give --lanes 12"),
        ("ab", [6, 6], 0, "other weights: of 12 lanes it had a 8, b 4, here a 6, b 6; .* a=8 b=4 stand for"),
    ],
)
def test_other_data_is_refused_and_what_differs_named(datasets, tmp_path, names, lanes_of, seed, message):
    with pytest.raises(UsageError, match=message):
        resume(data_state(mix(datasets, "ab", [8, 4])), mix(datasets, names, lanes_of, seed), tmp_path)


def test_the_weights_that_a_refusal_names_bring_the_run_back(datasets):
    given = Mixture.by_weight([datasets["a"], datasets["b"]], [0.7, 0.3], lanes=12)
    again = Mixture.by_weight([datasets["a"], datasets["b"]], given.lanes_of, lanes=12)
    assert data_state(again) == data_state(given)


def test_a_checkpoint_from_before_mixtures_goes_on(datasets, tmp_path):
    alone = mix(datasets, "a", [12])
    state = data_state(alone)
    assert state == DataState("a", datasets["a"].manifest.fingerprint, 0, 12)
    assert asdict(state)["sources"] == []
    resume(state, alone, tmp_path)
