"""The packing plan: every row in one place, the same on every machine, within the limits."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sharding.plan import PackingPlan

plans = {
    "splits": st.lists(st.integers(0, 2), min_size=1, max_size=80).map(lambda s: np.array(s, np.uint8)),
    "seed": st.integers(0, 3),
    "samples_per_shard": st.integers(1, 30),
}


@given(**plans)
def test_every_row_has_one_place_in_its_split(splits, seed, samples_per_shard):
    plan = PackingPlan(splits, 3, seed, samples_per_shard)
    rows = [plan.rows(shard) for shard in plan.shards]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(splits)))
    for shard, own in zip(plan.shards, rows, strict=True):
        assert set(splits[own].tolist()) == {shard.split}
        assert len(own) == len(shard.slots) <= samples_per_shard
    for split in range(3):
        places = [place for shard in plan.shards if shard.split == split for place in shard.slots]
        assert places == list(range(int((splits == split).sum())))


@given(**plans, sizes=st.lists(st.integers(0, 50), min_size=80, max_size=80), limit=st.integers(1, 200))
def test_shards_are_filled_up_to_the_limit_of_bytes(splits, seed, samples_per_shard, sizes, limit):
    sizes = np.array(sizes[: len(splits)], np.uint32)
    plan = PackingPlan(splits, 3, seed, samples_per_shard, sizes, limit)
    assert sorted(np.concatenate([plan.rows(shard) for shard in plan.shards]).tolist()) == list(
        range(len(splits))
    )
    for shard, following in zip(plan.shards, [*plan.shards[1:], None], strict=True):
        own = sizes[plan.rows(shard)]
        assert len(own) == 1 or own.sum() <= limit
        if following and following.split == shard.split and len(own) < samples_per_shard:
            assert own.sum() + sizes[plan.rows(following)[0]] > limit, "one more sample would have fitted"


def test_the_order_is_a_shuffle_that_the_seed_decides():
    orders = []
    for seed in (0, 0, 1):
        plan = PackingPlan(np.zeros(10_000, np.uint8), 1, seed, 1000)
        orders.append(np.concatenate([plan.rows(shard) for shard in plan.shards]))
    assert (orders[0] == orders[1]).all()
    assert (orders[0] == orders[2]).mean() < 0.01
    assert abs(np.corrcoef(orders[0], np.arange(10_000))[0, 1]) < 0.05


def test_memory_is_a_few_bytes_a_row():
    """13 bytes: the order (8), the image's size (4), the split (1); a chunk of the shuffle comes on top."""
    rows = 6_000_000
    splits, sizes = np.zeros(rows, np.uint8), np.ones(rows, np.uint32)
    tracemalloc.start()
    try:
        plan = PackingPlan(splits, 1, 0, 10_000, sizes, 10**6)
        assert len(plan.shards) == 600
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 8.2 * rows
    assert peak < 16 * rows + 32 * 2**20
