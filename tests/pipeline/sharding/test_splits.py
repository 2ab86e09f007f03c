"""Splits: no group in two of them, and data that come later move nothing."""

import pytest

from pipeline.sharding.splits import parse_splits
from shards import UsageError

SHARES = "train=0.8,valid=0.1,test=0.1"


def splits_of(groups, text=SHARES):
    splits = parse_splits(text, None, None)
    return {group: splits.names[splits.split_of(group)] for group in groups}


def test_shares_are_met_and_a_group_stays_where_it_is_whatever_else_there_is():
    groups = [f"PMC{number}" for number in range(20_000)]
    placed = splits_of(groups)
    shares = [sum(split == name for split in placed.values()) / 20_000 for name in ("train", "valid", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert splits_of(groups[:100]) == {group: placed[group] for group in groups[:100]}


def test_the_places_of_groups_never_change_between_versions():
    """People compare figures on their test split for years."""
    assert "".join(split[1] for split in splits_of(f"PMC{n}" for n in range(40)).values()) == (
        "rrarrrreaarerrrrrrrrrrrrrrrrrarrrrrrrerr"
    )


PLACES = "rrrrrrrrrrrrrarrrrrrrrererrrrrrrrrrrrrrr"


@pytest.mark.parametrize(
    ("key", "pattern", "image", "other", "group"),
    [
        (None, None, "PMC212319_Fig3_4.jpg", {}, "PMC212319"),
        (None, None, "figures/PMC7_1.jpg", {}, "PMC7"),
        (None, None, "biorxiv_1.jpg", {}, None),
        (None, r"^([^_]+)_", "biorxiv_1.jpg", {}, "biorxiv"),
        (None, r".*", "a.jpg", {}, "a.jpg"),
        ("pmcid", None, "PMC1_2.jpg", {"pmcid": "77"}, "77"),
        ("pmcid", None, "PMC1_2.jpg", {"pmcid": 77}, "77"),
        ("pmcid", None, "PMC1_2.jpg", {"pmcid": ""}, None),
        ("pmcid", None, "PMC1_2.jpg", {}, None),
    ],
)
def test_the_group_of_a_row(key, pattern, image, other, group):
    assert parse_splits(SHARES, key, pattern).group((image, "caption", other)) == group


def test_shares_may_be_percentages():
    assert parse_splits("train=90%,valid=7.5%,test=2.5%", None, None) == parse_splits(
        "train=0.9,valid=0.075,test=0.025", None, None
    )


@pytest.mark.parametrize(
    ("text", "key", "pattern", "message"),
    [
        ("train", None, None, "write it as train=0.9"),
        ("train=0.9,../x=0.1", None, None, "write it as train=0.9"),
        ("train=0.9,test=-0.1", None, None, "write it as train=0.9"),
        ("train=0.9,test=0.2", None, None, "the shares add up to 1.1; they must add up to 1"),
        ("train=0.5,train=0.5", None, None, "named twice"),
        (SHARES, "pmcid", "x", "give one of them"),
        (SHARES, None, "(", "no regular expression"),
    ],
)
def test_splits_that_make_no_sense_are_refused(text, key, pattern, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        parse_splits(text, key, pattern)
