"""The exact order as a PyTorch data set: any number of workers and ranks, and states to go on from."""

import gc
import pickle
import threading
from itertools import islice
from pathlib import Path

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import Stateful, StatefulDataLoader

from shards import ShardDataset, UsageError
from shards.standing import SharedStanding, Standing
from shards.storage import Folder

BATCH = 24
N = 225  # samples of the data set: not a multiple of the batch


def position_of(sample, position):
    return position


@pytest.fixture(scope="module")
def address(sample_shards) -> str:
    return str(sample_shards / "train")


@pytest.fixture
def make(address):
    """A data set of positions; `batch_size` is that of a rank."""

    def make_dataset(**options) -> ShardDataset:
        return ShardDataset(
            options.pop("data", address),
            **{"batch_size": BATCH, "lanes": 12, "transform": position_of, **options},
        )

    return make_dataset


def positions(loader) -> list[int]:
    return [position for batch in loader for position in batch.tolist()]


def test_an_iteration_ends_with_the_first_batch_that_reaches_the_epochs_end(make):
    loader = DataLoader(make(), BATCH)
    assert [len(list(loader)) for _ in range(4)] == [10, 9, 10, 9]
    assert positions(loader) == list(range(38 * BATCH, 47 * BATCH))


def test_samples_sets_the_length_of_an_iteration(make):
    loader = DataLoader(make(samples=50), BATCH)
    assert [positions(loader)[0] for _ in range(3)] == [0, 72, 144]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"persistent_workers": True},
        pytest.param({"multiprocessing_context": "spawn"}, marks=pytest.mark.slow),
    ],
)
def test_workers_give_the_same_batches_epoch_after_epoch(make, options):
    loader = DataLoader(make(start=48), BATCH, num_workers=2, **options)
    epochs = [[batch.tolist() for batch in loader] for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [8, 9, 10]
    assert [batch for epoch in epochs for batch in epoch] == [
        list(range(g, g + BATCH)) for g in range(48, 29 * BATCH, BATCH)
    ]


def test_without_a_transform_a_sample_is_its_file_and_caption(address):
    batch = next(iter(DataLoader(ShardDataset(Path(address), batch_size=4), 4, num_workers=1)))
    assert batch["position"].tolist() == [0, 1, 2, 3]
    assert all(image[:2] in (b"\xff\xd8", b"\x89P", b"GI") for image in batch["image"])
    assert all(isinstance(caption, str) and caption for caption in batch["caption"])


def test_a_state_goes_on_with_other_processes_workers_and_batches(make):
    """Three phases on different numbers of ranks: together, each position once and in order."""
    found, state = [], None
    for world_size, workers, batches in ((1, 0, 3), (3, 2, 4), (2, 1, 99)):
        ranks = [
            make(rank=rank, world_size=world_size, batch_size=24 // world_size) for rank in range(world_size)
        ]
        if state:
            for rank in ranks:
                rank.load_state_dict(pickle.loads(pickle.dumps(state)))
        taken = [
            [
                batch.tolist()
                for batch in islice(DataLoader(rank, 24 // world_size, num_workers=workers), batches)
            ]
            for rank in ranks
        ]
        for step in zip(*taken, strict=True):
            found.append(sorted(position for batch in step for position in batch))
        state = ranks[0].state_at(24 * len(found))
    assert found == [list(range(g, g + 24)) for g in range(0, 240, 24)]


def test_ranks_agree_on_a_state_in_the_middle_of_a_batch(make):
    ranks = [make(rank=rank, world_size=3, batch_size=8) for rank in range(3)]
    for rank in ranks:
        list(islice(rank, 5))
    state = ranks[0].state_dict()
    assert state == ranks[1].state_dict() == ranks[2].state_dict()
    alone = make()
    alone.load_state_dict(state)
    assert list(alone) == list(range(15, 15 + 240))


@pytest.mark.parametrize(
    ("workers", "taken"),
    [(0, 0), (0, 5), (0, 9), (0, 10), (0, 13), (2, 5), (2, 9), (2, 10)]
    + [pytest.param(2, taken, marks=pytest.mark.slow) for taken in (0, 1, 13, 19)],
)
def test_a_stateful_dataloader_goes_on_exactly(make, workers, taken):
    """After any number of batches, ends of epochs included (after 10 batches, and 9 more)."""

    def two_epochs_and_more(loader):
        return (batch.tolist() for _ in range(3) for batch in loader)

    dataset = make()
    assert isinstance(dataset, Stateful)
    loader = StatefulDataLoader(dataset, BATCH, num_workers=workers)
    before = list(islice(two_epochs_and_more(loader), taken))
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    resumed = StatefulDataLoader(make(), BATCH, num_workers=workers)
    resumed.load_state_dict(state)
    after = [[batch.tolist() for batch in resumed] for _ in range(2)]
    assert [len(before) + len(after[0]), len(after[1])] in ([10, 9], [19, 10])
    found = [*before, *after[0], *after[1]]
    assert found == [list(range(g, g + BATCH)) for g in range(0, len(found) * BATCH, BATCH)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_dataloader_saved_between_epochs_begins_the_next(make, workers):
    loader = StatefulDataLoader(make(), BATCH, num_workers=workers)
    assert positions(loader) == list(range(240))
    resumed = StatefulDataLoader(make(), BATCH, num_workers=workers)
    resumed.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
    assert positions(resumed) == list(range(240, 456))
    assert positions(resumed) == list(range(456, 696))


def test_a_stateful_dataloader_goes_on_after_some_workers_have_ended(make):
    """Without a batch size each worker ends with a short batch: here one has, and the other has not."""
    loader = StatefulDataLoader(make(batch_size=1), BATCH, num_workers=2)
    before = [position for batch in islice(loader, 9) for position in batch.tolist()]
    resumed = StatefulDataLoader(make(batch_size=1), BATCH, num_workers=2)
    resumed.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
    assert sorted(before + positions(resumed)) == list(range(N))
    assert sorted(positions(resumed)) == list(range(N, 2 * N))


def test_the_state_of_a_worker_is_refused_elsewhere(make):
    loader = StatefulDataLoader(make(), BATCH, num_workers=2)
    next(iter(loader))
    state = loader.state_dict()["_snapshot"]["_worker_snapshots"]["worker_0"]["dataset_state"]
    with pytest.raises(UsageError, match=r"worker 0 of 2 .* state_at\(samples_seen\)"):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    ("other", "message"),
    [({"seed": 5}, "give seed=0"), ({"lanes": 8}, "give lanes=12"), ({"data": "valid"}, "shards")],
)
def test_a_state_of_another_order_is_refused(make, sample_shards, other, message):
    if "data" in other:
        other = {"data": str(sample_shards / other["data"])}
    with pytest.raises(UsageError, match=message):
        make(**other).load_state_dict(make().state_dict())


def test_no_state_is_made_up_for_what_workers_read(make):
    dataset = make()
    next(iter(DataLoader(dataset, BATCH, num_workers=2)))
    with pytest.raises(UsageError, match="StatefulDataLoader"):
        dataset.state_dict()
    with pytest.raises(UsageError, match="2 DataLoader workers"):
        next(iter(dataset))
    dataset.load_state_dict(dataset.state_at(BATCH))
    assert positions(DataLoader(dataset, BATCH, num_workers=1))[0] == BATCH


def test_workers_go_on_after_the_main_process_read(make):
    dataset = make(batch_size=1, samples=30)
    assert list(dataset) == list(range(30))
    assert list(islice(dataset, 7)) == list(range(30, 37))
    assert positions(DataLoader(dataset, 1, num_workers=2)) == list(range(37, 60))


@pytest.fixture
def quick_shutdown(monkeypatch):
    """A DataLoader whose workers raised waits for each of them as long as this when it is let go: 5 s."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    yield
    gc.collect()


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}])
def test_leaving_workers_early_is_refused_until_told_where_to_go_on(make, quick_shutdown, options):
    dataset = make(batch_size=4)
    loader = DataLoader(dataset, 4, num_workers=2, **options)
    assert [batch.tolist()[0] for batch in islice(loader, 3)] == [0, 4, 8]
    with pytest.raises(UsageError, match=r"left early.* not known.* load_state_dict\(state_at"):
        next(iter(loader))
    dataset.load_state_dict(dataset.state_at(12))
    assert positions(loader) == list(range(12, 228))
    assert positions(loader)[:4] == list(range(228, 232))


def test_leaving_workers_of_which_one_had_finished_is_refused(make, quick_shutdown):
    """Four batches: worker 0 is asked for more than its two, and worker 1 is not."""
    loader = DataLoader(make(batch_size=4, samples=16), 4, num_workers=2, prefetch_factor=2)
    assert next(iter(loader)).tolist() == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="left early"):
        list(loader)


def test_a_worker_that_finished_while_another_had_not_begun_is_refused():
    standing = SharedStanding(Standing(0, 0, 12))
    reading = standing.begin(0, 2, new=True, placed=False)
    standing.note(reading, Standing(12, 12, 24))
    standing.begin(0, 2, new=False, placed=False)  # a pipeline that repeats itself in the worker
    with pytest.raises(UsageError, match="left early"):
        standing.begin(0, 2, new=True, placed=False)
    standing.begin(1, 2, new=True, placed=False)


def test_a_new_iteration_ends_an_older_one(make):
    dataset = make(batch_size=1)
    older, newer = iter(dataset), iter(dataset)
    assert [next(older), next(older), next(newer)] == [0, 1, 2]
    with pytest.raises(UsageError, match="this iteration is over"):
        next(older)
    assert next(newer) == 3


def test_workers_end_an_iteration_of_the_process_that_made_them():
    standing = SharedStanding(Standing(0, 0, 12))
    reading = standing.begin(None, 0, new=True, placed=False)
    standing.note(reading, Standing(0, 3, 12))
    standing.begin(1, 2, new=True, placed=False)
    assert standing.of(1) == Standing(3, 3, 12)
    with pytest.raises(UsageError, match="this iteration is over"):
        standing.note(reading, Standing(0, 4, 12))


def test_leaving_an_iteration_leaves_no_thread(make):
    before = set(threading.enumerate())
    list(islice(make(), 3))
    assert set(threading.enumerate()) == before


def test_workers_read_from_s3_after_the_main_process_did(make, sample_shards, s3):
    folder = Folder(f"{s3}/torch_dataset")
    for file in (sample_shards / "train").iterdir():
        if file.suffix in (".tar", ".bin") or file.name == "manifest.json":
            folder.write(file.name, file.read_bytes())
    dataset = make(data=folder.address, samples=48)
    assert list(dataset) == list(range(48))
    assert positions(DataLoader(dataset, BATCH, num_workers=2)) == list(range(48, 96))
