"""Mixtures: every promise about several data sets in one stream, computed from the code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import (
    Dataset,
    Folder,
    Manifest,
    Mixture,
    Order,
    ShardRecord,
    TrainingPlan,
    UsageError,
    open_dataset,
)
from shards.lane_shares import share_lanes, spread_lanes


def make_dataset(name: str, samples: list[int]) -> Dataset:
    """A data set with an index and no files: shards with so many samples of 40 KB."""
    lengths = np.full(sum(samples), 40_960, np.uint32)
    shards = tuple(ShardRecord(f"{name}-{i}.tar", count, 0, name) for i, count in enumerate(samples))
    return Dataset(Folder(name), Manifest(shards, ""), lengths, np.zeros(len(lengths), np.uint32))


@st.composite
def mixtures(draw):
    shard_samples = st.lists(st.integers(1, 150), min_size=1, max_size=4)
    sizes = draw(st.lists(shard_samples, min_size=1, max_size=4))
    lanes_of = draw(st.lists(st.integers(1, 12), min_size=len(sizes), max_size=len(sizes)))
    datasets = [make_dataset(f"d{number}", samples) for number, samples in enumerate(sizes)]
    return Mixture(datasets, lanes_of, draw(st.integers(0, 2**40)))


def sources_and_ids(mixture: Mixture, positions) -> tuple[np.ndarray, np.ndarray]:
    places = mixture.order.at(np.asarray(positions, np.int64))
    blocks = mixture.dataset.blocks
    sources = np.array([mixture.dataset.source(block) for block in places.block.tolist()])
    return sources, blocks.first_sample[places.block] + places.slot


@given(st.lists(st.integers(1, 150), min_size=1, max_size=4), st.integers(1, 20), st.integers(0, 2**40))
def test_one_data_set_has_exactly_the_order_that_it_has_without_a_mixture(samples, lanes, seed):
    dataset = make_dataset("a", samples)
    mixture, order = Mixture([dataset], [lanes], seed), Order(dataset.blocks.samples, seed, lanes)
    span = (3, 2 * len(dataset) + 5)
    assert mixture.dataset is dataset
    assert mixture.fingerprint == dataset.manifest.fingerprint
    for rank in range(2):
        ours, theirs = mixture.plan(rank, 2, *span), TrainingPlan(order, rank, 2, *span)
        assert list(ours.places()) == list(theirs.places())
        assert list(ours.visits()) == list(theirs.visits())


@given(mixtures(), st.integers(0, 3))
def test_every_data_set_gives_each_of_its_samples_once_in_each_of_its_own_epochs(mixture, skipped):
    longest = max(
        len(dataset) * mixture.lanes // lanes
        for dataset, lanes in zip(mixture.datasets, mixture.lanes_of, strict=True)
    )
    places = mixture.order.at(np.arange((skipped + 2) * (longest + mixture.lanes)))
    blocks = mixture.dataset.blocks
    ids = blocks.first_sample[places.block] + places.slot
    first = 0
    for dataset in mixture.datasets:
        own = (ids >= first) & (ids < first + len(dataset))
        epoch = np.sort(ids[own & (places.epoch == skipped)])
        assert epoch.tolist() == list(range(first, first + len(dataset)))
        first += len(dataset)


@given(mixtures(), st.integers(1, 7), st.integers(0, 5000), st.integers(1, 300))
def test_ranks_share_the_stream_and_their_visits_cover_it_in_order(mixture, world_size, start, count):
    alone = list(mixture.plan(0, 1, 0, start + count).places())[start:]
    parts = [mixture.plan(rank, world_size, start, start + count) for rank in range(world_size)]
    together = sorted(place for plan in parts for place in plan.places(chunk=11))
    assert together == alone
    for plan in parts:
        visits = list(plan.visits())
        firsts = [first for _, first, _ in visits]
        assert firsts == sorted(firsts)
        stays = {}
        for block, first, last in visits:
            stays.setdefault(block, []).append((first, last))
        used = {position: block for position, _, block, _ in plan.places()}
        assert all(used.get(first) == block for block, first, _ in visits)
        for position, block in used.items():
            assert any(first <= position <= last for first, last in stays[block])


@given(mixtures(), st.integers(0, 900))
def test_counts_of_each_data_set_follow_from_the_position_by_arithmetic(mixture, position):
    sources, _ = sources_and_ids(mixture, range(position))
    counted = np.bincount(sources.astype(np.int64), minlength=len(mixture.datasets)).tolist()
    assert mixture.samples_seen_by_source(position) == counted


@given(mixtures(), st.integers(1, 100))
def test_the_most_that_a_batch_holds_of_a_data_set_is_exact(mixture, batch):
    sources, _ = sources_and_ids(mixture, range(2 * mixture.lanes + batch))
    for number, most in enumerate(mixture.most_in_batch(batch)):
        before = np.concatenate([[0], np.cumsum(sources == number)])
        assert (before[batch:] - before[:-batch]).max() == most


@given(mixtures())
def test_substitutes_of_a_sample_are_the_others_of_its_block_and_data_set(mixture):
    places = mixture.order.at(np.arange(mixture.lanes))
    for epoch, block, slot in zip(places.epoch, places.block, places.slot, strict=True):
        substitutes = mixture.order.substitutes(int(epoch), int(block), int(slot))
        assert sorted([*substitutes, slot]) == list(range(mixture.dataset.blocks.samples[block]))


weights = st.lists(st.floats(0.05, 1), min_size=1, max_size=6)


@given(weights, st.integers(100, 800))
def test_weights_are_met_to_the_nearest_lane(shares, lanes):
    counts = share_lanes(shares, lanes)
    assert sum(counts) == lanes
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - share / sum(shares) * lanes) < 1


@given(st.integers(1, 30), st.integers(40, 80))
def test_a_weight_of_half_a_lane_gets_a_whole_one(small, lanes):
    """The others make room for it."""
    counts = share_lanes([0.501] * small + [lanes - 0.501 * small], lanes)
    assert counts == [1] * small + [lanes - small]


@given(weights, st.integers(100, 800))
def test_every_batch_is_an_even_mix(shares, lanes):
    """To within 2 samples between multiples of 16, and to within 10 anywhere, at any length."""
    counts = share_lanes(shares, lanes)
    source_of_lane = spread_lanes(counts)
    assert np.bincount(source_of_lane, minlength=len(counts)).tolist() == counts
    for source, count in enumerate(counts):
        had = np.cumsum(source_of_lane == source) - np.arange(1, lanes + 1) * count / lanes
        excess = np.concatenate([[0], had])  # beyond its share, before each lane
        assert excess.max() - excess.min() < 10
        assert np.ptp(excess[:-1:16]) < 2


@pytest.mark.parametrize("processes", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("shares", [[1, 1], [3, 1], [0.7, 0.3], [1, 1, 1, 1], [0.5, 0.3, 0.2]])
def test_every_process_sees_every_data_set_in_about_its_share(shares, processes):
    """Two equal data sets must not be one process's each."""
    source_of_lane = spread_lanes(share_lanes(shares, 384))
    for rank in range(processes):
        own = np.bincount(source_of_lane[rank::processes], minlength=len(shares)) * processes / 384
        assert own == pytest.approx(np.array(shares) / sum(shares), abs=0.04)


def test_data_sets_of_the_same_shape_do_not_go_through_their_blocks_in_step():
    mixture = Mixture([make_dataset("a", [640]), make_dataset("b", [640])], [4, 4], seed=1)
    sources, ids = sources_and_ids(mixture, range(1280))
    first, second = ids[sources == 0], ids[sources == 1] - 640
    assert np.count_nonzero(first == second) < 10


def test_the_way_lanes_are_dealt_out_is_pinned():
    """A run must go on after an update: this is part of the order of a mixture."""
    assert share_lanes([0.5, 0.3, 0.2], 24) == GOLDEN_COUNTS
    assert "".join(map(str, spread_lanes(GOLDEN_COUNTS).tolist())) == GOLDEN_LANES
    mixture = Mixture([make_dataset("a", [7, 5]), make_dataset("b", [9])], [3, 2], seed=11)
    assert sources_and_ids(mixture, range(20, 40))[1].tolist() == GOLDEN_MIXED


# Written down once; they must never be edited.
GOLDEN_COUNTS = [12, 7, 5]
GOLDEN_LANES = "012200101001120020000121"
GOLDEN_MIXED = [11, 12, 1, 8, 18, 10, 15, 3, 6, 20, 9, 13, 2, 4, 19, 7, 16, 5, 0, 17]


@pytest.mark.parametrize(
    ("shares", "lanes", "message"),
    [
        ([1, 0], 8, "a weight of 0: it must be above 0"),
        ([1, -0.5], 8, "a weight of -0.5"),
        ([1, float("inf")], 8, "a weight of inf"),
        ([99, 1], 12, "the smallest has 1.00% of the weight: 0.12 lanes.* --lanes 50 or more"),
        ([1, 1, 1], 2, "--lanes 3 or more"),
    ],
)
def test_shares_that_lanes_cannot_express_are_refused_with_a_remedy(shares, lanes, message):
    with pytest.raises(UsageError, match=message):
        share_lanes(shares, lanes)
    assert sum(share_lanes([99, 1], 50)) == 50


def test_the_same_data_set_twice_is_refused():
    twin = make_dataset("a", [10])
    with pytest.raises(UsageError, match="are the same data set: give it once"):
        Mixture([twin, make_dataset("b", [10]), twin], [1, 1, 1])


def test_data_sets_that_have_samples_in_common_are_refused(sample_shards):
    source = open_dataset(str(sample_shards / "train"))
    early = np.arange(len(source)) < 40
    views = [source.keeping(early), source.keeping(~early)]
    assert len(Mixture(views, [1, 1])) == len(source)
    overlapping = source.keeping(np.arange(len(source)) >= 39)
    for others in ([source, views[0]], [views[1], source], [views[0], overlapping]):
        with pytest.raises(
            UsageError, match=r"train and .*train have samples in common .*leave one out.*select"
        ):
            Mixture(others, [1, 1])
