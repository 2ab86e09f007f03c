"""Retrieval from embeddings: the figures of an evaluation that computes features itself, or a refusal."""

import json

import pytest

from tests.checkpoints import write_checkpoint
from tests.figures import write_figures


@pytest.fixture
def embedded(run, tmp_path):
    """Embeddings `e` of 30 figures in several pieces; the flags that name what they were made of."""
    checkpoint = write_checkpoint(tmp_path / "run" / "checkpoints")
    made_of = ("--data", write_figures(tmp_path / "d", 30), "--checkpoint", checkpoint)
    done = run("embed", *made_of, "--out", "e", "--samples-per-piece", 8)
    assert done.returncode == 0, done.stderr
    return made_of


def figures(folder) -> dict:
    found = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name != "data"}


@pytest.mark.parametrize("subset", [(), ("--limit", 11)])
def test_figures_and_ids_are_those_of_an_evaluation_without_them(run, embedded, tmp_path, subset):
    direct = run("evaluate", *embedded, "--out", "direct", *subset)
    ready = run("evaluate", "--embeddings", "e", "--out", "ready", *subset)
    assert direct.returncode == ready.returncode == 0, direct.stderr + ready.stderr
    assert direct.stdout == ready.stdout
    assert figures(tmp_path / "direct") == figures(tmp_path / "ready")
    ids = [(tmp_path / folder / "ids.txt").read_text() for folder in ("direct", "ready")]
    assert ids[0] == ids[1]


@pytest.mark.slow
def test_processes_share_the_rows(run, embedded, tmp_path):
    assert run("evaluate", "--embeddings", "e", "--out", "one").returncode == 0
    done = run("evaluate", "--embeddings", "e", "--out", "two", processes=2)
    assert done.returncode == 0, done.stderr
    assert figures(tmp_path / "one") == figures(tmp_path / "two")


def test_what_would_give_other_figures_is_refused(run, embedded, tmp_path):
    other = write_checkpoint(tmp_path / "other", seed=1)
    refused = {
        ("--checkpoint", str(other)): "they are of another model",
        ("--data", write_figures(tmp_path / "o", 30, side=41)): "they are of other data",
        ("--task", "mlm"): "not for mlm",
        ("--group-key", "licence"): "not for retrieval by licence",
    }
    for flags, words in refused.items():
        done = run("evaluate", "--embeddings", "e", *flags)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
    done = run("evaluate", "--data", "d")
    assert done.returncode == 2
    assert "give --data and --checkpoint, or --embeddings" in done.stderr
    assert run("embed", *embedded, "--out", "half", "--only", "image").returncode == 0
    done = run("evaluate", "--embeddings", "half")
    assert done.returncode == 2
    assert "embed the data without --only" in done.stderr
