"""What training reads: data sets named on the command line, their weights, and what is refused."""

import pytest

from pipeline.data import (
    check_global_batch,
    describe_training,
    open_training_data,
    parse_sources,
    reading_advice,
    source_counts,
)
from pipeline.topology import Topology
from shards import Folder, UsageError, write_manifest, write_shard


@pytest.fixture
def addresses(tmp_path):
    """Data sets `a` of 60 samples and `b` of 20."""

    def write(name: str, count: int) -> str:
        folder = Folder(tmp_path / name)
        samples = ((f"{name}{i:03d}", {"jpg": b"no image", "txt": b"a caption"}) for i in range(count))
        write_manifest(folder, [write_shard(folder, "train-000000.tar", samples)], {})
        return folder.address

    return write("a", 60), write("b", 20)


def open_both(addresses, weights=("", ""), lanes=16):
    words = [address + weight for address, weight in zip(addresses, weights, strict=True)]
    return open_training_data(words, Topology(), lanes=lanes, seed=0)


@pytest.mark.parametrize(
    ("words", "addresses", "weights"),
    [
        (["shards/a"], ["shards/a"], None),
        (["a", "b"], ["a", "b"], None),
        (["a=0.7", "s3://b/x=.3"], ["a", "s3://b/x"], [0.7, 0.3]),
        (["a=7", "b=1e-1"], ["a", "b"], [7.0, 0.1]),
        (["day=monday", "b"], ["day=monday", "b"], None),
        (["part=1/", "part=2/"], ["part=1/", "part=2/"], None),
        (["part=1=0.5", "s3://b/{000..163}.tar=2"], ["part=1", "s3://b/{000..163}.tar"], [0.5, 2.0]),
        (["a=nan"], ["a=nan"], None),
    ],
)
def test_only_a_number_at_the_very_end_is_a_weight(words, addresses, weights):
    assert parse_sources(words) == (addresses, weights)


@pytest.mark.parametrize("words", [[], [""], ["a", ""]])
def test_no_data_set_at_all_is_refused(words):
    with pytest.raises(UsageError, match="no data set is named"):
        parse_sources(words)


def test_without_weights_data_sets_are_mixed_by_size(addresses):
    assert open_both(addresses).lanes_of == (12, 4)
    assert open_both(addresses, ("=1", "=1")).lanes_of == (8, 8)
    assert open_training_data(addresses[:1], Topology(), lanes=16, seed=0).lanes_of == (16,)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (("=0.7", ""), "a=0.7 has a weight and .*b has none"),
        (("=0.7", "=0"), "b=0: a weight must be above 0"),
        (("=0.7", "=-3"), "b=-3: a weight must be above 0"),
        (("=1", "=99"), "--lanes 50 or more"),
    ],
)
def test_weights_that_make_no_mixture_are_refused(addresses, weights, message):
    with pytest.raises(UsageError, match=message):
        open_both(addresses, weights)


def test_a_data_set_named_twice_is_refused(addresses):
    with pytest.raises(UsageError, match=r"a and .*a are the same data set"):
        open_both((addresses[0], addresses[0]), ("=2", "=1"))


def test_a_batch_that_would_hold_a_sample_twice_is_refused(addresses):
    """Each data set must have as many samples as a batch can hold of it: 20 of the second."""
    data = open_both(addresses, ("=1", "=1"))
    largest = max(batch for batch in range(1, 80) if data.most_in_batch(batch)[1] <= 20)
    check_global_batch(largest, Topology(), data)
    with pytest.raises(
        UsageError, match=r"b has 20 samples, fewer than the 21 .* give the data set less weight"
    ):
        check_global_batch(largest + 1, Topology(), data)
    alone = open_training_data(addresses[1:], Topology(), lanes=16, seed=0)
    check_global_batch(20, Topology(), alone)
    with pytest.raises(
        UsageError, match=r"b has 20 samples, fewer than a global batch of 21: .* --batch-size$"
    ):
        check_global_batch(21, Topology(), alone)


def test_what_each_data_set_has_given_is_counted_for_the_log(addresses):
    data = open_both(addresses, ("=3", "=1"))
    assert source_counts(data, 320) == {
        "samples_seen/a": 240,
        "epochs/a": 4.0,
        "samples_seen/b": 80,
        "epochs/b": 4.0,
    }
    assert source_counts(open_training_data(addresses[:1], Topology(), lanes=4, seed=0), 7) == {}


def test_a_mixture_is_described_by_lanes_and_share(addresses):
    larger, smaller = describe_training(open_both(addresses, ("=1", "=1")))
    assert "60 samples" in larger
    assert "8 of 16 lanes: 50.0% of the samples, an epoch of its own every 120" in larger
    assert "an epoch of its own every 40" in smaller
    assert reading_advice(open_both(addresses), Topology()).startswith("window 0 MiB a process")
    assert "--lanes 15" in reading_advice(open_both(addresses), Topology(0, 5))
