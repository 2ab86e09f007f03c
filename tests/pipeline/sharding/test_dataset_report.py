"""The report on a data set: self-contained, safe with any text, and showing the numbers it was given."""

import re
from html.parser import HTMLParser

import pytest

from pipeline.sharding.dataset_report import Example, Section, dataset_report
from pipeline.sharding.image_check import CheckedImage
from pipeline.sharding.statistics import Statistics, Taken

HOSTILE = '<script>alert("x")</script> & "quotes"'


def statistics(sides=(300, 400, 500)) -> Statistics:
    return Statistics.of(
        [Taken(CheckedImage("jpg", "RGB", 2 * side, side), 1000 * side, "three words here") for side in sides]
    )


def section(name="train", examples=(), rejected=None, counted=None) -> Section:
    return Section(name, 2, 12_345_678, counted or statistics(), rejected or {}, examples)


class WellFormed(HTMLParser):
    """Fails where an element is closed that is not the one open last."""

    VOID = ("meta", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def words(page: str) -> str:
    """What a reader sees, without markup."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))


def test_the_page_needs_nothing_else_and_escapes_whatever_it_is_given(picture):
    example = Example(HOSTILE, picture(), HOSTILE)
    page = dataset_report(HOSTILE, [section(HOSTILE, [example], {HOSTILE: 1})])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "url(" not in page
    assert "@import" not in page
    parser = WellFormed()
    parser.feed(page)
    assert parser.open == []


def test_every_split_shows_its_own_numbers():
    page = dataset_report(
        "data",
        [
            section("train", rejected={"truncated": 1, "missing": 3}),
            section("valid", counted=statistics((7,))),
        ],
    )
    train, valid = (words(part) for part in page.split("<h2>")[1:])
    for shown in (
        "3 samples",
        "2 shards",
        "12.3 MB size",
        "4 rejected rows",
        "missing 3 75.0% truncated 1 25.0%",
    ):
        assert shown in train
    assert "shorter side, pixels 300 300 300 300 400 500 500 500 500" in train
    assert "1 sample " in valid
    assert "0 rejected rows" in valid
    assert "missing" not in valid


def test_a_long_caption_is_cut_and_whole_in_its_tooltip(picture):
    caption = "word " * 100 + "end"
    page = dataset_report("data", [section(examples=[Example("000", picture(), caption)])])
    assert f'title="{caption}"' in page
    assert "end" not in words(page)
    assert "…" in words(page)


def test_a_caption_of_megabytes_does_not_fill_the_page(picture):
    page = dataset_report("data", [section(examples=[Example("000", picture(), "x" * 10_000_000)])])
    assert len(page) < 50_000


def test_an_example_that_cannot_be_decoded_is_said_to_be_so(picture):
    examples = [Example("0", b"not an image", "a"), Example("1", picture(size=(300, 300))[:150], "b")]
    page = dataset_report("data", [section(examples=[*examples, Example("2", picture(), "c")])])
    assert page.count("cannot be decoded") == 2
    assert page.count("<img") == 1


def test_thumbnails_are_small_whatever_the_figures_are(picture):
    examples = [Example(str(n), picture(n, "BMP", (1500, 900)), "a") for n in range(3)]
    assert len(dataset_report("data", [section(examples=examples)])) < 60_000


@pytest.mark.parametrize("sides", [(5,), (5, 5, 5), (5, 6), tuple(range(1, 3000, 7))])
def test_bars_of_a_histogram_account_for_every_sample(sides):
    page = dataset_report("data", [section(counted=statistics(sides))])
    drawing = page.split("<svg")[1].split("</svg>")[0]
    counts = [int(count) for count in re.findall(r"<title>(\d+) samples", drawing)]
    assert sum(counts) == len(sides)


def test_an_empty_data_set_has_a_page():
    page = dataset_report("data", [section(counted=Statistics(), rejected={"missing": 5})])
    assert "0 samples" in words(page)
    assert "missing 5 100.0%" in words(page)
    assert "<svg" not in page
