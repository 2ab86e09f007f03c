"""What reaches a batch beside pixels: columns, one caption of several, and what a user's transform made."""

import json
from collections import Counter

import numpy as np
import pytest

from pipeline.data import LoaderOptions, evaluation_loader, training_loader
from pipeline.decode import EvalImages, TrainImages
from pipeline.text import TextStage
from pipeline.topology import Topology
from pipeline.user_transform import UserTransform, load_transform
from pmc_clip import get_tokenizer
from shards import DataError, Folder, Mixture, UsageError, open_dataset, write_manifest, write_shard
from shards.hashing import Purpose, derive
from tests.figures import write_figures

SAMPLES, SIZE = 60, 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(write_figures(tmp_path_factory.mktemp("d"), SAMPLES))


@pytest.fixture(scope="module")
def with_captions(tmp_path_factory):
    """Five captions for each image."""
    return open_dataset(write_figures(tmp_path_factory.mktemp("captions"), SAMPLES, captions=5))


def load(dataset, *, rank=0, world_size=1, workers=2, epochs=1, seed=5, **options):
    return training_loader(
        Mixture([dataset], [12], seed),
        Topology(rank, world_size),
        global_batch=12,
        start=0,
        stop=epochs * SAMPLES,
        images=TrainImages(SIZE),
        text=None,
        options=LoaderOptions(workers, 10**6, **options),
    )


def collect(loader) -> dict[int, tuple]:
    """Key, caption, pixels and columns at each position."""
    with loader:
        return {
            position: (
                batch.keys[i],
                batch.captions[i],
                batch.images[i].numpy().tobytes(),
                {name: values[i] for name, values in batch.columns.items()},
            )
            for batch in loader
            for i, position in enumerate(batch.positions.tolist())
        }


def test_columns_asked_for_are_in_the_batch_and_absent_values_are_none(dataset):
    for key, _, _, columns in collect(load(dataset, columns=("licence", "note"))).values():
        number = int(key)
        assert columns == {"licence": f"CC {number % 3}", "note": None if number % 10 else "seen"}


def test_a_column_that_no_sample_has_is_refused_and_those_there_are_named(dataset):
    with pytest.raises(UsageError, match=r"no column license: none of .* looked at .* licence, note, row"):
        collect(load(dataset, columns=("licence", "license")))


def test_values_are_those_of_the_json_whatever_their_kind(tmp_path, dataset):
    """Of a sample whose `.json` is none, another takes the place, and it is said where it lies."""
    values = {"text": "é", "number": 1.5, "flag": False, "none": None, "nested": {"a": [1, {"b": None}]}}
    members = dict(dataset.read_sample(0).members)

    def samples():
        for number in range(SAMPLES):
            said = json.dumps({**values, "row": number}).encode() if number != 7 else b"{"
            yield f"{number:06d}", {**members, "json": said}

    folder = Folder(tmp_path)
    write_manifest(folder, [write_shard(folder, "d-000000.tar", samples())], {})
    loader = load(open_dataset(str(tmp_path)), columns=(*values, "row"))
    for key, _, _, columns in collect(loader).values():
        assert columns == {**values, "row": int(key)}
        assert key != "000007"
    assert [line.split(": ")[:2] for line in loader.bad_samples] == [
        [f"{tmp_path}/d-000000.tar", "the .json of sample '000007' cannot be read"]
    ]


def test_of_several_captions_one_is_drawn_by_sample_and_epoch_on_any_topology(with_captions):
    alone = collect(load(with_captions, epochs=20))
    parts = [collect(load(with_captions, epochs=20, rank=r, world_size=3, workers=1)) for r in range(3)]
    assert {position: sample for part in parts for position, sample in part.items()} == alone
    assert all(sample[1].endswith(f" of {int(sample[0])}") for sample in alone.values())
    drawn = Counter(sample[1].split()[1] for sample in alone.values())
    assert sorted(drawn) == ["0", "1", "2", "3", "4"]
    assert min(drawn.values()) > 0.8 * 20 * SAMPLES / 5
    by_key = Counter((sample[0], sample[1]) for sample in alone.values())
    assert max(by_key.values()) < 15  # a sample's caption changes between epochs
    other = collect(load(with_captions, epochs=20, seed=6))
    assert {s[:2] for s in list(other.values())[:SAMPLES]} != {s[:2] for s in list(alone.values())[:SAMPLES]}


def test_what_captions_and_transforms_are_drawn_from_never_changes():
    assert int(derive(7, 3, 11, Purpose.CAPTION)) == 0x7E68F0607C0775DC
    assert int(derive(7, 3, 11, Purpose.TRANSFORM)) == 0x10C96274A616443F


def test_evaluation_takes_the_first_caption(with_captions):
    loader = evaluation_loader(
        with_captions,
        Topology(),
        batch_size=16,
        images=EvalImages(SIZE),
        text=TextStage(get_tokenizer("tiny")),
        options=LoaderOptions(2, 10**6),
    )
    captions = [sample[1] for _, sample in sorted(collect(loader).items())]
    assert captions == [f"caption 0 of {number}" for number in range(SAMPLES)]


def flip_and_tag(example):
    """A transform that uses all that it is given."""
    if example.random.random() < 0.5:
        example.image = example.image[:, ::-1]
    example.caption = f"{example.columns['licence']}: {example.caption} {example.random.integers(1000)}"
    example.columns["flips"] = example.key
    return example


def test_a_transform_gives_the_same_on_any_topology_and_its_columns_can_be_asked_for(dataset):
    transform = UserTransform(flip_and_tag, "tests:flip_and_tag")
    options = {"transform": transform, "columns": ("flips",)}
    plain, changed = collect(load(dataset)), collect(load(dataset, **options))
    parts = [collect(load(dataset, rank=r, world_size=2, workers=3, **options)) for r in range(2)]
    assert {position: sample for part in parts for position, sample in part.items()} == changed
    same = sum(plain[position][2] == changed[position][2] for position in plain)
    assert 15 < same < 45  # about half are flipped
    for position, (key, caption, _, columns) in changed.items():
        assert plain[position][0] == key
        assert caption.startswith(f"CC {int(key) % 3}: {plain[position][1]} ")
        assert columns == {"flips": key}


def change_in_place(example):
    example.image[:] = 7


def test_a_transform_may_change_its_example_in_place_and_return_nothing(dataset):
    changed = collect(load(dataset, transform=UserTransform(change_in_place, "x:y")))
    assert {sample[2] for sample in changed.values()} == {bytes([7]) * 3 * SIZE * SIZE}


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (lambda e: 3, "returned int: it must return the example or nothing"),
        (lambda e: setattr(e, "image", e.image[:5]), r"left uint8 \[5, 24, 3\] as the image"),
        (lambda e: setattr(e, "image", e.image / 255), r"left float64 \[24, 24, 3\] as the image"),
        (lambda e: setattr(e, "image", None), "left NoneType as the image"),
        (lambda e: setattr(e, "caption", None), "left NoneType as the caption"),
        (lambda e: e.columns["nothing"], r"KeyError: 'nothing' \(.*test_loader_columns\.py, line \d+\)"),
        (lambda e: np.zeros(3).reshape(2), r"ValueError: .*test_loader_columns\.py, line \d+\)"),
    ],
)
def test_a_transform_that_fails_or_leaves_something_else_ends_in_one_error(dataset, left, words):
    with pytest.raises(DataError, match=rf"d-000000\.tar: sample 0000\d\d: --transform mine:f .*{words}"):
        collect(load(dataset, transform=UserTransform(left, "mine:f")))


def test_a_transform_is_found_by_name_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_transforms.py").write_text(
        "import colours\n\ndef grey(example):\n    return colours.grey\n"
    )
    (tmp_path / "colours.py").write_text("grey = 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_transform("my_transforms:grey").name == "my_transforms:grey"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grey", "write it as module:function"),
        ("absent_module:grey", r"there is no module absent_module; start from the folder .* PYTHONPATH"),
        ("math:grey", r"math has no function grey; it has acos, "),
        ("broken_transforms:f", r"importing it failed: ZeroDivisionError: .*broken_transforms\.py, line 2\)"),
        ("needy_transforms:f", r"importing it failed: ModuleNotFoundError: .*'absent_package'"),
        ("typo_transforms:f", r"importing it failed: SyntaxError: .*typo_transforms\.py, line 1\)"),
    ],
)
def test_a_transform_that_cannot_be_had_is_refused(tmp_path, monkeypatch, name, words):
    (tmp_path / "broken_transforms.py").write_text("\n1 / 0\n")
    (tmp_path / "needy_transforms.py").write_text("import absent_package\n")
    (tmp_path / "typo_transforms.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^--transform {name}: .*{words}"):
        load_transform(name)
