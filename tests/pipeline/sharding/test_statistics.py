"""The account of a data set's samples: what it counts, and that shards add up to the whole."""

import json
import statistics as standard

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sharding.image_check import CheckedImage
from pipeline.sharding.statistics import COLUMNS, Distribution, Statistics, Taken


def image(width: int = 700, height: int = 550, extension: str = "jpg", mode: str = "RGB") -> CheckedImage:
    return CheckedImage(extension, mode, width, height)


SAMPLES = st.lists(
    st.tuples(
        st.builds(image, st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from(["jpg", "png"])),
        st.integers(1, 10**9),
        st.text("ab \n", max_size=40),
    ),
    max_size=30,
)


def account(samples) -> Statistics:
    return Statistics.of([Taken(*sample) for sample in samples])


@given(SAMPLES, SAMPLES)
def test_accounts_of_two_shards_add_up_to_the_account_of_both(first, second):
    assert account(first) + account(second) == account(first + second)


@given(SAMPLES)
def test_an_account_survives_the_shards_description(samples):
    written = json.dumps(account(samples).to_dict())
    assert Statistics.from_dict(json.loads(written)) == account(samples)


def test_the_same_samples_in_another_order_are_described_in_the_same_bytes():
    samples = [
        (image(extension=e, mode=m), n, "a") for n, (e, m) in enumerate([("png", "L"), ("jpg", "RGB")])
    ]
    assert json.dumps(account(samples).to_dict()) == json.dumps(account(samples[::-1]).to_dict())


@given(st.lists(st.integers(0, 999), min_size=1))
def test_numbers_below_a_thousand_have_exact_quantiles(values):
    distribution = Distribution.of(values, 3)
    expected = np.quantile(values, [0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1], method="inverted_cdf")
    assert distribution.row() == expected.tolist()


@given(st.lists(st.integers(1, 10**9), min_size=1))
def test_quantiles_of_larger_numbers_are_within_five_percent_and_in_order(values):
    distribution = Distribution.of(values, 2)
    row = distribution.row()
    assert row == sorted(row)
    assert (row[0], row[-1]) == (min(values), max(values))
    assert row[COLUMNS.index("p50")] == pytest.approx(standard.median_low(values), rel=0.05)


def test_a_shard_of_a_thousand_different_figures_takes_a_few_kilobytes():
    rng = np.random.default_rng(0)
    counted = account(
        (
            image(*rng.integers(200, 1500, 2).tolist()),
            int(rng.lognormal(11, 1)),
            "word " * rng.integers(5, 300),
        )
        for _ in range(1000)
    )
    assert len(json.dumps(counted.to_dict(), separators=(",", ":"))) < 12_000


def test_images_that_were_not_looked_at_have_no_sides():
    counted = account([(image(0, 0, "jpg", ""), 1000, "a caption"), (image(0, 0, "png", ""), 10, "one")])
    assert counted.shorter_side.row() == []
    printed = "\n".join(counted.summary_lines())
    assert "1 jpg, 1 png" in printed
    assert "side" not in printed
    assert "modes" not in printed


def test_the_summary_shows_kinds_and_quantiles():
    samples = [(image(600, 300 + n), 12_000, "three words here") for n in range(101)]
    lines = account([*samples, (image(10, 20, "png", "L"), 1_234_567, "one")]).summary_lines()
    assert lines[:2] == ["formats: 101 jpg, 1 png", "modes: 101 RGB, 1 L"]
    shown = {" ".join(line.split()[:2]): line.split()[2:] for line in lines[3:]}
    assert lines[2].split() == list(COLUMNS)
    assert shown["shorter side"] == ["10", "300", "304", "324", "349", "375", "395", "399", "400"]
    assert shown["image bytes"][0] == "12,000"
    assert shown["image bytes"][-1] == "1,234,567"
    assert shown["caption words"][0] == "1"


def test_an_empty_account_has_nothing_to_say():
    assert Statistics().summary_lines() == []
