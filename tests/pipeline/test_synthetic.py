"""The demo's data set: the same every time, and shaped like the real one."""

import csv
import itertools
import random
from pathlib import Path

import pytest
from PIL import Image

from pipeline.synthetic import KINDS, write_synthetic_dataset

SAMPLES = {"train": 80, "valid": 20, "test": 60}


def read(folder: Path, split: str) -> list[dict[str, str]]:
    with open(folder / f"{split}.csv", encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_synthetic_dataset(tmp_path / name, SAMPLES, seed)
    content = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        for name in "abc"
    }
    assert content["a"] == content["b"]
    assert content["a"] != content["c"]


def test_shape_is_that_of_pmc_oa(tmp_path):
    write_synthetic_dataset(tmp_path, SAMPLES)
    articles: dict[str, set[str]] = {}
    formats, modes = set(), set()
    for split, count in SAMPLES.items():
        rows = read(tmp_path, split)
        assert len(rows) == count
        assert len({row["image"] for row in rows}) == count
        assert len({row["caption"] for row in rows}) > 0.9 * count
        together = [article for article, _ in itertools.groupby(row["pmcid"] for row in rows)]
        assert len(together) == len(set(together)), "figures of one article are neighbours"
        assert len(together) < count
        articles[split] = set(together)
        for row in rows:
            with Image.open(tmp_path / "images" / row["image"]) as image:
                image.load()
                formats.add(image.format)
                modes.add(image.mode)
            assert row["image"].startswith(f"{row['pmcid']}_")
    assert formats == {"JPEG", "PNG"}
    assert modes == {"RGB", "L"}
    assert not articles["train"] & articles["test"]
    assert not articles["train"] & articles["valid"]
    assert not articles["valid"] & articles["test"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_has_captions_by_the_hundreds(kind):
    rng = random.Random(0)
    assert len({kind(rng)[1] for _ in range(400)}) > 150


def test_captions_name_what_each_kind_shows(tmp_path):
    write_synthetic_dataset(tmp_path, {"train": 300})
    text = " ".join(row["caption"].lower() for row in read(tmp_path, "train"))
    for word in ("cell", "bar", "curve", "blot", "lesion", "nuclei", "scatter", "beats"):
        assert word in text
    assert len(KINDS) == 8
