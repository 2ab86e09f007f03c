"""The exact order as a stage of the webdataset package."""

import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import webdataset as wds

from shards import (
    DataError,
    EvaluationPlan,
    Mixture,
    Order,
    SampleStream,
    ShardSamples,
    TrainingPlan,
    UsageError,
    open_dataset,
)
from shards.worker_share import WorkerShare


@pytest.fixture(scope="module")
def dataset(sample_shards):
    return open_dataset(str(sample_shards / "train"))


@pytest.fixture(scope="module")
def keys_in_order(dataset):
    """The keys of the first three epochs, as our own stream reads them."""
    with SampleStream(dataset, Mixture([dataset], [12], 3).plan(stop=3 * len(dataset))) as stream:
        return [raw.read().key for raw in stream]


def keys(samples) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_samples_are_those_of_webdatasets_own_reader(sample_shards, dataset):
    shards = [dataset.folder.locate(record.name) for record in dataset.manifest.shards]
    theirs = wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples())
    ours = wds.DataPipeline(ShardSamples(str(sample_shards / "train"), shuffle=False))
    wanted = [{"__url__": sample["__url__"], **sample} for sample in theirs]
    found = list(ours)
    assert [sample.pop("__position__") for sample in found] == list(range(len(dataset)))
    for sample in (*wanted, *found):
        sample.pop("__local_path__", None)
    assert found == wanted


def test_a_pipeline_decodes_and_goes_on_from_epoch_to_epoch(dataset, keys_in_order):
    pipeline = wds.DataPipeline(
        ShardSamples(dataset, batch_size=25, seed=3, lanes=12),
        wds.decode(),
        wds.to_tuple("__key__", "txt"),
        wds.batched(25),
    )
    epochs = [list(pipeline) for _ in range(3)]
    assert [key for epoch in epochs for batch in epoch for key in batch[0]] == keys_in_order
    assert all(isinstance(caption, str) for batch in epochs[0] for caption in batch[1])


def test_with_epoch_cuts_the_stream_without_loss(dataset, keys_in_order):
    pipeline = wds.DataPipeline(ShardSamples(dataset, seed=3, lanes=12)).with_epoch(100)
    assert [key for _ in range(6) for key in keys(pipeline)] == keys_in_order[:600]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_are_the_same_with_any_number_of_workers(dataset, keys_in_order, workers):
    pipeline = wds.DataPipeline(
        ShardSamples(dataset, batch_size=25, seed=3, lanes=12), wds.to_tuple("__key__"), wds.batched(25)
    )
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=workers)
    assert [key for _ in range(3) for batch in loader for key in batch[0]] == keys_in_order


def test_ranks_from_the_environment_share_each_epoch(dataset, keys_in_order, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        stage = ShardSamples(dataset, batch_size=5, seed=3, lanes=12)
        assert stage.global_batch == 15
        found.append(keys(stage))
    assert [key for step in zip(*found, strict=True) for key in step] == keys_in_order[:225]


@pytest.mark.parametrize("workers", [0, 3])
def test_an_evaluation_gives_each_sample_once_in_order(dataset, workers):
    found = []
    for rank in range(2):
        stage = ShardSamples(dataset, batch_size=8, shuffle=False, rank=rank, world_size=2)
        pipeline = wds.DataPipeline(stage, wds.to_tuple("__key__"), wds.batched(8))
        loader = wds.WebLoader(pipeline, batch_size=None, num_workers=workers)
        next(iter(loader))  # a look ahead takes nothing away
        found += [key for batch in loader for key in batch[0]]
    with SampleStream(dataset, EvaluationPlan(dataset.blocks.samples)) as stream:
        assert found == [raw.read().key for raw in stream]


def test_a_mixture_is_read_as_one_stream(sample_shards):
    datasets = [open_dataset(str(sample_shards / name)) for name in ("train", "valid")]
    mixture = Mixture.by_weight(datasets, [0.75, 0.25], lanes=8)
    urls = [sample["__url__"] for sample in islice(ShardSamples(mixture, batch_size=4), 200)]
    assert sum("valid" in url for url in urls) == 50


@pytest.mark.parametrize(
    ("batch", "workers", "start", "rank", "world_size"), [(4, 3, 0, 0, 1), (5, 2, 37, 1, 3), (16, 4, 9, 0, 2)]
)
def test_a_workers_visits_are_exactly_what_its_samples_need(dataset, batch, workers, start, rank, world_size):
    mixture = Mixture([dataset], [12], 0)
    covered = []
    for worker in range(workers):
        stop = start + batch * world_size * 30
        plan = mixture.plan(rank, world_size, start, stop)
        share = WorkerShare(plan, worker, workers, batch * world_size, plan.step, start)
        places, visits = list(share.places()), list(share.visits())
        assert [first for _, first, _ in visits] == sorted(first for _, first, _ in visits)
        positions = {position: block for position, _, block, _ in places}
        assert all(positions[first] == positions[last] == block for block, first, last in visits)
        for position, block in positions.items():
            assert any(block == seen and first <= position <= last for seen, first, last in visits)
        covered += positions
    assert sorted(covered) == list(range(start + (rank - start) % world_size, stop, world_size))


@pytest.mark.parametrize(("workers", "disjoint"), [(2, True), (3, True), (4, False)])
def test_workers_read_no_block_in_common_where_their_batches_divide_the_lanes(workers, disjoint):
    plan = TrainingPlan(Order(np.full(400, 16), lanes=48), 1, 2, stop=6400)  # 24 lanes of this rank
    shares = [WorkerShare(plan, worker, workers, 8, plan.step, 0) for worker in range(workers)]
    read = sum(len(list(share.visits())) for share in shares)
    alone = len(list(plan.visits()))
    assert (read == alone) == disjoint
    assert read <= workers * alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"start": -1}, "start=-1"),
        ({"shuffle": False, "start": 4}, "shuffle=False"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
    ],
)
def test_what_cannot_be_is_refused(dataset, options, message):
    with pytest.raises(UsageError, match=message):
        ShardSamples(dataset, **options)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_view_without_samples_is_refused_by_name(dataset, shuffle):
    empty = dataset.keeping(np.zeros(len(dataset), bool))
    with pytest.raises(UsageError, match=r"/train: this data set has no samples"):
        ShardSamples(empty, shuffle=shuffle)


def test_a_tiny_data_set_plans_no_more_of_its_epochs_than_it_reads(dataset, monkeypatch):
    planned, at = [], Order.at
    monkeypatch.setattr(
        Order, "at", lambda order, positions: planned.append(len(positions)) or at(order, positions)
    )
    tiny = dataset.keeping(np.arange(len(dataset)) == 7)
    assert len(list(ShardSamples(tiny, batch_size=4))) == 4
    assert max(planned) == 4


def test_a_damaged_shard_is_named(dataset, tmp_path):
    for name in ("manifest.json", "index.bin", "checksums.bin"):
        (tmp_path / name).write_bytes(dataset.folder.read(name))
    for record in dataset.manifest.shards:
        (tmp_path / record.name).write_bytes(dataset.folder.read(record.name)[:-20_000])
    with pytest.raises(DataError, match=r"train-00000\d\.tar"):
        list(ShardSamples(str(tmp_path)))


def test_shards_needs_neither_torch_nor_webdataset():
    code = "import shards, sys; shards.ShardSamples; print({'torch', 'webdataset'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
