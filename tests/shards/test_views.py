"""Views: data sets of some samples of shards that lie elsewhere, read with the same guarantees."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import (
    DamagedSample,
    DataError,
    Dataset,
    EvaluationPlan,
    Folder,
    Order,
    SampleStream,
    TrainingPlan,
    WrittenShard,
    open_dataset,
    write_manifest,
    write_shard,
)
from shards.index import cut_blocks, select_blocks
from shards.references import make_reference, resolve_reference

SHARD_SAMPLES = (150, 70, 60)
TOTAL = sum(SHARD_SAMPLES)


def content(number: int) -> dict[str, bytes]:
    return {"jpg": bytes([number % 251]) * (200 + 977 * (number % 13)), "txt": f"caption {number}".encode()}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Folder, list[WrittenShard]]:
    """Three shards, of three blocks and two and one, in a folder."""
    folder, written, first = Folder(tmp_path_factory.mktemp("views") / "source"), [], 0
    for number, count in enumerate(SHARD_SAMPLES):
        samples = [(f"{n:09d}", content(n)) for n in range(first, first + count)]
        written.append(write_shard(folder, f"source-{number:06d}.tar", samples))
        first += count
    write_manifest(folder, written, {})
    return folder, written


def make_view(out: Folder, source: Folder, shards: list[WrittenShard], selected: np.ndarray) -> Dataset:
    reference = make_reference(out, source)
    there = [replace(shard, record=replace(shard.record, folder=reference)) for shard in shards]
    write_manifest(out, there, {}, selected=selected)
    return open_dataset(out.address)


# Nearly all, nearly none, runs: what views look like.
selections = st.one_of(
    st.sets(st.integers(0, TOTAL - 1), min_size=1, max_size=6).map(
        lambda kept: [n in kept for n in range(TOTAL)]
    ),
    st.sets(st.integers(0, TOTAL - 1), max_size=6).map(lambda left: [n not in left for n in range(TOTAL)]),
    st.lists(st.booleans(), min_size=TOTAL, max_size=TOTAL).filter(any),
    st.tuples(st.integers(0, TOTAL - 1), st.integers(1, TOTAL)).map(
        lambda span: [span[0] <= n < sum(span) for n in range(TOTAL)]
    ),
).map(np.array)


def read_all(dataset: Dataset, plan) -> list[tuple[int, str, bytes, str]]:
    with SampleStream(dataset, plan, prefetch_bytes=100_000, fetch_threads=2) as stream:
        found = [(raw.position, raw.read()) for raw in stream]
    return [(position, s.key, bytes(s.image), s.caption) for position, s in found]


def expected(numbers) -> list[tuple[str, bytes, str]]:
    return [(f"{n:09d}", content(n)["jpg"], f"caption {n}") for n in numbers]


@settings(max_examples=25)
@given(selections, st.integers(0, 99), st.sampled_from([1, 7, 384]), st.integers(1, 5))
def test_an_epoch_has_each_selected_sample_once_and_no_other(source, selected, seed, lanes, world_size):
    view = open_dataset(source[0].address).keeping(selected)
    order, numbers = Order(view.blocks.samples, seed, lanes), np.flatnonzero(selected)
    assert len(view) == order.samples == len(numbers)
    for epoch in (0, 1):
        span = epoch * len(view), (epoch + 1) * len(view)
        training = [
            sample
            for rank in range(world_size)
            for sample in read_all(view, TrainingPlan(order, rank, world_size, *span))
        ]
        assert sorted(s[1:] for s in training) == expected(numbers)
        assert sorted(s[0] for s in training) == list(range(*span))
    evaluation = [
        sample
        for rank in range(world_size)
        for sample in read_all(view, EvaluationPlan(view.blocks.samples, rank, world_size))
    ]
    assert [s[1:] for s in evaluation] == expected(numbers)
    assert [s[0] for s in evaluation] == list(range(len(view)))


@settings(max_examples=8)
@given(selections)
def test_a_view_that_was_written_is_the_view_that_was_made(source, selected):
    folder, shards = source
    made = open_dataset(folder.address).keeping(selected)
    opened = make_view(Folder(Path(folder.address).parent / "view"), folder, shards, selected)
    assert len(opened) == len(made) == selected.sum()
    assert opened.manifest.fingerprint == made.manifest.fingerprint
    for array in ("shard", "first_sample", "samples", "offset", "length"):
        assert np.array_equal(getattr(opened.blocks, array), getattr(made.blocks, array))
    assert opened.read_sample(len(opened) - 1) == made.read_sample(len(made) - 1)


@settings(max_examples=15)
@given(selections, st.integers(0, 600), st.integers(1, 50))
def test_resuming_a_view_goes_on_as_if_nothing_had_happened(source, selected, start, count):
    view = open_dataset(source[0].address).keeping(selected)
    order = Order(view.blocks.samples, seed=3, lanes=5)
    whole = read_all(view, TrainingPlan(order, 0, 1, 0, start + count))
    resumed = [
        sample
        for rank in (0, 1)
        for sample in read_all(view, TrainingPlan(order, rank, 2, start, start + count))
    ]
    assert sorted(resumed) == whole[start:]


@settings(max_examples=40)
@given(selections)
def test_samples_of_a_view_are_read_by_number(source, selected):
    view = open_dataset(source[0].address).keeping(selected)
    read = [view.read_sample(number) for number in range(len(view))]
    assert [(s.key, bytes(s.image), s.caption) for s in read] == expected(np.flatnonzero(selected))


@given(
    st.lists(
        st.lists(st.integers(1, 40).map(lambda kib: kib * 4096), min_size=1, max_size=200),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_blocks_of_a_view_are_the_data_sets_own_trimmed_to_what_is_selected(shards, data):
    lengths = np.array([length for shard in shards for length in shard], np.uint32)
    counts = np.array([len(shard) for shard in shards])
    selected = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))), bool
    )
    whole = cut_blocks(lengths, counts)
    view = select_blocks(whole, lengths, selected)
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    shard_start = starts[np.concatenate([[0], np.cumsum(counts)])]
    found = list(
        zip(
            view.shard, view.first_sample, view.samples, view.offset, view.length, view.first_row, strict=True
        )
    )
    wanted = []
    for shard, first, count in zip(whole.shard, whole.first_sample, whole.samples, strict=True):
        rows = first + np.flatnonzero(selected[first : first + count])
        if len(rows):
            begin, end = starts[rows[0]], starts[rows[-1] + 1]
            before = int(selected[: rows[0]].sum())
            wanted.append((shard, before, len(rows), begin - shard_start[shard], end - begin, rows[0]))
    assert found == wanted


@settings(max_examples=30)
@given(selections, selections)
def test_a_view_of_a_view_is_the_view_of_both(source, first, second):
    whole = open_dataset(source[0].address)
    narrowed, both = whole.keeping(first).keeping(second[first]), whole.keeping(first & second)
    assert narrowed.manifest.selection == both.manifest.selection
    assert [narrowed.read_sample(n).key for n in range(len(narrowed))] == [
        both.read_sample(n).key for n in range(len(both))
    ]


@settings(max_examples=30)
@given(selections)
def test_the_shards_of_a_view_taken_one_by_one_are_the_view(source, selected):
    view = open_dataset(source[0].address).keeping(selected)
    singles = [view.single_shard(number) for number in range(len(view.manifest.shards))]
    keys = [
        single.sample(block, slot, single.read_block(block)).key
        for single in singles
        for block in range(len(single.blocks))
        for slot in range(int(single.blocks.samples[block]))
    ]
    assert keys == [f"{n:09d}" for n in np.flatnonzero(selected)]


def some(numbers: set[int]) -> np.ndarray:
    return np.isin(np.arange(TOTAL), list(numbers))


def test_views_of_different_samples_have_different_fingerprints(source, tmp_path):
    folder, shards = source
    whole = open_dataset(folder.address).manifest.fingerprint
    views = [make_view(Folder(tmp_path / str(n)), folder, shards, some({n, 100})) for n in (1, 2)]
    assert len({whole, *(view.manifest.fingerprint for view in views)}) == 3


def test_what_a_view_leaves_out_is_not_read(source, tmp_path):
    """Bytes before the first and after the last selected sample of a block may even be damaged."""
    folder, shards = source
    shutil.copytree(folder.address, tmp_path / "source")
    view = make_view(Folder(tmp_path / "view"), Folder(tmp_path / "source"), shards, some({5, 9}))
    row_ends = np.cumsum(shards[0].lengths)
    path = tmp_path / "source" / "source-000000.tar"
    data = bytearray(path.read_bytes())
    data[: row_ends[4]] = bytes(row_ends[4])
    data[row_ends[9] :] = bytes(len(data) - row_ends[9])
    path.write_bytes(data)
    assert [s[1:] for s in read_all(view, EvaluationPlan(view.blocks.samples))] == expected([5, 9])
    assert len(view.read_block(0)) == row_ends[9] - row_ends[4]


def test_a_view_and_its_shards_may_move_together(source, tmp_path):
    folder, shards = source
    shutil.copytree(folder.address, tmp_path / "a" / "source")
    make_view(Folder(tmp_path / "a" / "views" / "v"), Folder(tmp_path / "a" / "source"), shards, some({3}))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert open_dataset(str(tmp_path / "b" / "views" / "v")).read_sample(0).key == "000000003"


def test_a_view_whose_shards_are_gone_says_where_they_should_be(source, tmp_path):
    folder, shards = source
    shutil.copytree(folder.address, tmp_path / "source")
    view = make_view(Folder(tmp_path / "view"), Folder(tmp_path / "source"), shards, some({3}))
    shutil.rmtree(tmp_path / "source")
    with pytest.raises(
        DataError, match=r"source/source-000000\.tar: the manifest lists this shard, but it is not"
    ):
        view.read_sample(0)


def test_a_changed_sample_of_a_view_is_noticed(source, tmp_path):
    folder, shards = source
    shutil.copytree(folder.address, tmp_path / "source")
    view = make_view(Folder(tmp_path / "view"), Folder(tmp_path / "source"), shards, some({0, 2}))
    with open(tmp_path / "source" / "source-000000.tar", "r+b") as file:
        file.seek(600)
        file.write(b"!")
    with pytest.raises(DamagedSample, match=r"source-000000\.tar: the sample at byte 0 .*was altered"):
        view.read_sample(0)
    assert view.read_sample(1).key == "000000002"


@pytest.mark.parametrize("damage", [b"", b"\0" * 35, b"\xff" * 36])
def test_damaged_selection_is_refused(source, tmp_path, damage):
    folder, shards = source
    make_view(Folder(tmp_path / "view"), folder, shards, some({3}))
    (tmp_path / "view" / "selected.bin").write_bytes(damage)
    with pytest.raises(DataError, match=r"selected\.bin: damaged"):
        open_dataset(str(tmp_path / "view"))


def test_a_view_without_its_selection_is_refused(source, tmp_path):
    folder, shards = source
    make_view(Folder(tmp_path / "view"), folder, shards, some({3}))
    (tmp_path / "view" / "selected.bin").unlink()
    with pytest.raises(DataError, match=r"selected\.bin: no such file"):
        open_dataset(str(tmp_path / "view"))


@pytest.mark.parametrize(
    ("base", "target", "reference"),
    [
        ("v", "a", "../a"),
        ("./v", "a/", "../a"),
        ("v", "v", ""),
        ("v", "./v", ""),
        ("deep/v", "a", "../../a"),
        ("s3://bucket/v", "s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket/v", "s3://bucket/v/", ""),
        ("v", "s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_references_lead_back(tmp_path, monkeypatch, base, target, reference):
    monkeypatch.chdir(tmp_path)
    assert make_reference(Folder(base), Folder(target)) == reference
    resolved = resolve_reference(Folder(base), reference)
    assert make_reference(resolved, Folder(target)) == ""


def test_a_reference_from_remote_to_local_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_reference(Folder("s3://bucket/v"), Folder("a")) == os.path.realpath("a")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_references_lead_back_through_symbolic_links(tmp_path, scheme):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "here").touch()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep")
    through_link, directly = (Folder(f"{scheme}{tmp_path}/{name}") for name in ("link/v", "disk/deep/v"))
    (tmp_path / "link" / "v").mkdir()
    reference = make_reference(through_link, Folder(f"{scheme}{tmp_path}/a"))
    assert not os.path.isabs(reference)
    for base in (through_link, directly):
        assert resolve_reference(base, reference).names() == ["here"]
