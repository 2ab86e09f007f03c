"""`python -m pipeline.search` on the console: the nearest samples, exactly or by an index, or a refusal."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

from pipeline.embedding.reader import open_embeddings
from pipeline.searching.query_model import QueryModel
from shards import open_dataset
from tests.checkpoints import write_checkpoint
from tests.figures import huge_png


@pytest.fixture
def search(run, embedded):
    """`search("--text", …)`: the command on the embeddings."""

    def run_search(*flags: object, **options):
        return run("search", "--embeddings", embedded.embeddings, *flags, **options)

    return run_search


def brute_force(embedded, query: np.ndarray, part: str = "image") -> list[int]:
    features = open_embeddings(str(embedded.embeddings)).features(part).whole()
    return np.argsort(-(features @ query[0]), kind="stable").tolist()


def test_a_caption_finds_the_images_that_a_product_with_all_of_them_ranks_first(search, embedded):
    done = search("--text", "axial CT of the chest", "--top", 7, "--json")
    assert done.returncode == 0, done.stderr
    hits = json.loads(done.stdout)
    query = QueryModel(open_embeddings(str(embedded.embeddings)).manifest.model, None, None)
    expected = brute_force(embedded, query.text("axial CT of the chest"))[:7]
    assert [hit["number"] for hit in hits] == expected
    assert [hit["rank"] for hit in hits] == list(range(1, 8))
    assert hits[0]["caption"] == f"caption 0 of {expected[0]}"
    assert hits[0]["key"] == f"{expected[0]:06d}"


def test_an_image_finds_itself_first_and_the_table_shows_it(search, embedded, tmp_path):
    (tmp_path / "query.jpg").write_bytes(open_dataset(embedded.figures).read_sample(17).image)
    done = search("--image", "query.jpg", "--top", 3)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"  1   1\.000  000017  caption 0 of 17", lines[0])


def test_captions_are_searched_when_asked_for(search):
    done = search("--text", "caption 0 of 23", "--target", "text", "--top", 1, "--json")
    assert json.loads(done.stdout)[0]["number"] == 23


def test_the_index_finds_the_same_is_kept_and_follows_the_embeddings(run, embedded, tmp_path):
    def search(*flags):
        return run("search", "--embeddings", "copy", "--text", "a heart", "--top", 5, "--json", *flags)

    def kept():
        return [path.name for path in (tmp_path / "copy").glob("*.faiss")]

    pytest.importorskip("faiss")
    shutil.copytree(embedded.embeddings, tmp_path / "copy")
    first = search("--index", "faiss")
    assert first.returncode == 0, first.stderr
    assert "index of 30 rows built" in first.stderr
    by_index, exact = json.loads(first.stdout), json.loads(search().stdout)
    assert [hit["number"] for hit in by_index] == [hit["number"] for hit in exact]
    assert [hit["score"] for hit in by_index] == pytest.approx([hit["score"] for hit in exact], abs=1e-6)
    before = kept()
    assert len(before) == 1
    again = search("--index", "faiss")
    assert "built" not in again.stderr
    flags = ("--data", embedded.figures, "--checkpoint", embedded.checkpoint, "--out", "copy")
    assert run("embed", *flags, "--dtype", "float16", "--overwrite").returncode == 0
    assert kept() == []
    assert "index of 30 rows built" in search("--index", "faiss").stderr
    assert kept() != before


def test_another_model_is_refused_and_the_same_one_may_have_moved(search, embedded, tmp_path):
    other = write_checkpoint(tmp_path / "other", seed=1)
    done = search("--text", "x-ray", "--checkpoint", other)
    assert done.returncode == 2
    assert "another model" in done.stderr
    moved = shutil.copytree(embedded.checkpoint.parent, tmp_path / "moved")
    assert search("--text", "x-ray", "--checkpoint", moved / "latest").returncode == 0


def test_a_model_that_is_gone_names_the_flag(run, embedded, tmp_path):
    shutil.copytree(embedded.embeddings, tmp_path / "e")
    checkpoint = write_checkpoint(tmp_path / "run")
    flags = ("--data", embedded.figures, "--checkpoint", checkpoint, "--out", "e", "--overwrite")
    assert run("embed", *flags).returncode == 0
    shutil.rmtree(tmp_path / "run")
    done = run("search", "--embeddings", "e", "--text", "x-ray")
    assert done.returncode == 2
    assert "give --checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give one of --text CAPTION, --image FILE and --serve"),
        (("--text", "a", "--serve"), "give one of --text"),
        (("--text", "  "), "the caption is empty"),
        (("--text", "a", "--top", "0"), "--top 0: it must be at least 1"),
        (("--image", "gone.png"), "--image gone.png: cannot be read (No such file or directory)"),
        (("--image", "garbage.png"), "this cannot be used as an image (not an image)"),
        (("--image", "cut.png"), "this cannot be used as an image (truncated)"),
        (("--image", "bomb.png"), "this cannot be used as an image (too many pixels)"),
        (("--text", "a", "--embeddings", "nothing"), "nothing: no embeddings here"),
        (("--serve", "--data", "nothing"), "if they lie elsewhere now, give --data"),
        (("--serve", "--port", "70000"), "a port is a number up to 65535"),
        (("--serve", "--host", "256.0.0.1"), "--host 256.0.0.1"),
        (("--serve", "--max-upload", "much"), "--max-upload much: write a number of bytes"),
    ],
)
def test_what_cannot_be_is_refused(run, embedded, picture, tmp_path, flags, message):
    (tmp_path / "garbage.png").write_bytes(b"garbage")
    (tmp_path / "cut.png").write_bytes(picture(size=(200, 200))[:-30])
    (tmp_path / "bomb.png").write_bytes(huge_png())
    flags = flags if "--embeddings" in flags else (*flags, "--embeddings", embedded.embeddings)
    done = run("search", *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("flags", "module", "extra"),
    [
        (("--text", "a", "--index", "faiss"), "faiss", "search"),
        (("--serve", "--port", "0"), "gradio", "serve"),
    ],
)
def test_a_missing_package_names_the_extra(search, monkeypatch, flags, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    done = search(*flags)
    assert done.returncode == 2
    assert f"pip install 'pmc-clip-stream[{extra}]'" in done.stderr
