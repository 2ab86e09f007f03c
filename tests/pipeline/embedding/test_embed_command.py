"""`python -m pipeline.embed`: the right features of every sample, in pieces that survive anything."""

import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import pmc_clip
from pipeline.embedding.manifest import MANIFEST
from pipeline.embedding.pieces import finished_pieces
from pipeline.embedding.reader import open_embeddings
from shards import DataError, UsageError, open_dataset
from tests.checkpoints import write_checkpoint
from tests.figures import write_figures

PIECE = ("--samples-per-piece", 8)


@pytest.fixture
def embed(run, checkpoint, figures):
    """`embed("--out", "e", …)`: the command, on the figures unless `data` names others."""

    def run_embed(*flags: object, data: object = figures, **options):
        return run("embed", "--data", data, "--checkpoint", checkpoint, *flags, **options)

    return run_embed


def written(path: Path) -> int:
    return path.stat().st_mtime_ns


def features(folder: Path, part: str = "image") -> np.ndarray:
    return np.array(open_embeddings(str(folder)).features(part).whole())


def test_features_are_those_of_the_model_on_every_image_and_caption(embed, figures, checkpoint, tmp_path):
    done = embed("--out", "e", "--batch-size", 7)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "e: 30 samples in 1 piece; features of images and captions, 128 float32 each\n"
    model, _, preprocess = pmc_clip.create_model_and_transforms(pretrained=checkpoint)
    tokens = pmc_clip.get_tokenizer("tiny")
    found, data = open_embeddings(str(tmp_path / "e")), open_dataset(figures)
    for number in range(30):
        sample = data.read_sample(number)
        assert found.sample(number) == (number, sample.key, sample.caption)
        with torch.no_grad():
            image = model.eval().encode_image(
                preprocess(Image.open(io.BytesIO(sample.image)))[None], normalize=True
            )
            text = model.encode_text(tokens([sample.caption]), normalize=True)
        assert np.abs(found.features("image").rows(number, number + 1) - image.numpy()).max() < 1e-5
        assert np.abs(found.features("text").rows(number, number + 1) - text.numpy()).max() < 1e-5


def test_batch_size_and_number_of_processes_change_neither_pieces_nor_features(embed, tmp_path):
    assert embed("--out", "one", *PIECE, "--batch-size", 5).returncode == 0
    done = embed("--out", "two", *PIECE, "--batch-size", 64, processes=2)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "two"))
    for part in ("image", "text"):
        assert np.abs(features(tmp_path / "one", part) - features(tmp_path / "two", part)).max() < 1e-5
    one, two = open_embeddings(str(tmp_path / "one")), open_embeddings(str(tmp_path / "two"))
    assert (one.keys, one.captions, one.numbers.tolist()) == (two.keys, two.captions, list(range(30)))


def test_killed_at_any_moment_it_goes_on_with_the_pieces_that_are_missing(
    start, embed, figures, checkpoint, tmp_path
):
    """Each round lets one more piece through before the kill."""
    flags = ("--samples-per-piece", 4, "--batch-size", 4, "--workers", 1)
    assert embed("--out", "whole", *flags).returncode == 0
    kept: dict[str, int] = {}
    folder = tmp_path / "killed"
    for wanted in (1, 4):
        process = start("embed", "--data", figures, "--checkpoint", checkpoint, "--out", "killed", *flags)
        while not folder.is_dir() or len(finished_pieces(os.listdir(folder))) < wanted:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        pieces = finished_pieces(os.listdir(folder))
        there = {
            name: (folder / name).stat().st_mtime_ns for name in map("samples-{:06d}.parquet".format, pieces)
        }
        assert kept.items() <= there.items(), "a finished piece was written again"
        kept = there
    done = embed("--out", "killed", *flags)
    assert done.returncode == 0, done.stderr
    assert kept == {name: written(folder / name) for name in kept}
    assert sorted(os.listdir(folder)) == sorted(os.listdir(tmp_path / "whole"))
    for name in os.listdir(folder):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_killed_many_times_on_two_processes_it_ends_as_if_never_stopped(
    launch, embed, figures, checkpoint, tmp_path, session_processes
):
    launcher, environment = launch
    flags = ("--samples-per-piece", 1, "--batch-size", 1, "--workers", 1)
    assert embed("--out", "whole", *flags).returncode == 0
    folder = tmp_path / "killed"
    for round in range(4):
        command = [
            *launcher(2, "embed"),
            "--data",
            figures,
            "--checkpoint",
            checkpoint,
            "--out",
            folder,
            *flags,
        ]
        process = subprocess.Popen(
            [*map(str, command), *map(str, flags)],
            env=environment(),
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        before = len(finished_pieces(os.listdir(folder))) if round else 0
        while not folder.is_dir() or len(finished_pieces(os.listdir(folder))) < before + 3:
            assert process.poll() is None
            time.sleep(0.001)
        for member in session_processes(process.pid):
            os.kill(member, signal.SIGKILL)
        process.wait()
    assert embed("--out", "killed", *flags).returncode == 0
    for name in os.listdir(tmp_path / "whole"):
        if name.endswith(".parquet"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert np.abs(features(folder) - features(tmp_path / "whole")).max() < 1e-5


def test_parquet_and_float16_hold_the_same_features(embed, tmp_path):
    assert embed("--out", "npy", *PIECE).returncode == 0
    assert embed("--out", "parquet", *PIECE, "--format", "parquet", "--dtype", "float16").returncode == 0
    assert {path.suffix for path in (tmp_path / "parquet").iterdir()} == {".parquet", ".json"}
    for part in ("image", "text"):
        exact, half = features(tmp_path / "npy", part), features(tmp_path / "parquet", part)
        assert half.dtype == np.float16
        assert np.array_equal(exact.astype(np.float16), half)
    first = pq.read_table(tmp_path / "parquet" / "samples-000000.parquet")
    assert first.column_names == ["number", "key", "caption", "image", "text"]
    assert np.allclose(first["image"][3].as_py(), features(tmp_path / "npy")[3], atol=1e-3)


def test_rows_and_choices_of_rows_are_those_of_all_pieces_together(embed, tmp_path):
    assert embed("--out", "e", *PIECE).returncode == 0
    rows = open_embeddings(str(tmp_path / "e")).features("image")
    whole = rows.whole()
    assert len(rows) == len(whole) == 30
    for start, stop in ((0, 30), (3, 5), (7, 9), (8, 16), (29, 30), (30, 30), (5, 27)):
        assert np.array_equal(rows.rows(start, stop), whole[start:stop])
    chosen = np.array([29, 0, 8, 7, 8])
    assert np.array_equal(rows.take(chosen), whole[chosen])
    assert np.array_equal(np.concatenate([piece for _, piece in rows.pieces()]), whole)
    assert [first for first, _ in rows.pieces()] == [0, 8, 16, 24]


def test_a_folder_of_images_is_embedded_by_path_and_broken_ones_are_left_out(embed, figures, tmp_path):
    data = open_dataset(figures)
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for number in range(6):
        name = f"deep/{number}.JPG" if number % 2 else f"{number}.jpg"
        (tmp_path / "images" / name).write_bytes(data.read_sample(number).image)
    (tmp_path / "images" / "2.jpg").write_bytes(b"\xff\xd8 broken")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    odd = os.fsencode(tmp_path / "images") + b"/z\xff.jpg"  # a name that is no text
    Path(os.fsdecode(odd)).write_bytes(data.read_sample(6).image)
    done = embed("--out", "e", *PIECE, data="images")
    assert done.returncode == 0, done.stderr
    assert "left out: " in done.stderr
    assert f"{tmp_path}/images/2.jpg" in done.stderr
    assert "left out: 1 sample, listed in the manifest" in done.stdout
    found = open_embeddings(str(tmp_path / "e"))
    assert found.keys == ["0.jpg", "4.jpg", "deep/1.JPG", "deep/3.JPG", "deep/5.JPG", "z?.jpg"]
    assert found.numbers.tolist() == [0, 2, 3, 4, 5, 6]
    assert [(entry.number, "2.jpg" in entry.reason) for entry in found.manifest.left_out] == [(1, True)]
    assert embed("--out", "all").returncode == 0
    assert np.abs(features(tmp_path / "e") - features(tmp_path / "all")[[0, 4, 1, 3, 5, 6]]).max() < 1e-5
    with pytest.raises(UsageError, match="features of images only"):
        found.features("text")


def test_too_many_broken_images_stop_the_work(embed, tmp_path):
    data = write_figures(tmp_path / "bad", 12, broken={3})
    done = embed("--out", "e", "--max-bad-samples", "0%", data=data)
    assert done.returncode == 1
    assert (
        "1 of 12 samples are damaged or could not be decoded, more than --max-bad-samples 0%" in done.stderr
    )
    with pytest.raises(UsageError, match="not finished; the same"):
        open_embeddings(str(tmp_path / "e"))


def test_captions_alone_need_no_sound_image(embed, tmp_path):
    data = write_figures(tmp_path / "bad", 5, broken=range(5))
    assert embed("--out", "e", "--only", "text", data=data).returncode == 0
    assert features(tmp_path / "e", "text").shape == (5, 128)


def test_other_work_in_the_same_folder_is_refused_until_told(embed, run, figures, tmp_path):
    assert embed("--out", "e", *PIECE).returncode == 0
    (tmp_path / "e" / "mine.txt").write_text("keep")
    before = features(tmp_path / "e")
    other = write_checkpoint(tmp_path / "other", seed=1)
    refused = {
        "dtype float16, not float32": embed("--out", "e", *PIECE, "--dtype", "float16"),
        "samples per piece 2048, not 8": embed("--out", "e"),
        "parts image, not image+text": embed("--out", "e", *PIECE, "--only", "image"),
        "data ": embed("--out", "e", *PIECE, data=write_figures(tmp_path / "d", 30, side=41)),
        "model ": run("embed", "--data", figures, "--checkpoint", other, "--out", "e", *PIECE),
    }
    for words, done in refused.items():
        assert done.returncode == 2
        assert f"holds other embeddings, asked for are: {words}" in done.stderr
        assert "--overwrite" in done.stderr
    assert np.array_equal(features(tmp_path / "e"), before)
    done = run("embed", "--data", figures, "--checkpoint", other, "--out", "e", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert not np.array_equal(features(tmp_path / "e"), before)
    assert {path.name for path in (tmp_path / "e").iterdir()} == {
        "mine.txt",
        MANIFEST,
        "image-000000.npy",
        "text-000000.npy",
        "samples-000000.parquet",
    }


def test_the_same_command_again_computes_nothing(embed, tmp_path):
    assert embed("--out", "e", *PIECE).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "e").glob("*-*")}
    again = embed("--out", "e", *PIECE, "--batch-size", 3)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 pieces are there already" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "e").glob("*-*")} == before


def test_pieces_of_an_unknown_model_are_never_taken_for_this_one(embed, tmp_path):
    assert embed("--out", "e").returncode == 0
    (tmp_path / "e" / MANIFEST).unlink()
    done = embed("--out", "e")
    assert done.returncode == 2
    assert f"without their {MANIFEST}" in done.stderr
    assert embed("--out", "e", "--overwrite").returncode == 0


def test_a_table_gives_what_its_shards_give(embed, run, small, tmp_path):
    assert run("shard", "--csv", small, "--out", "packed", "--workers", "1").returncode == 0
    assert embed("--out", "shards", data="packed").returncode == 0
    done = embed("--out", "table", data=small, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    table, packed = open_embeddings(str(tmp_path / "table")), open_embeddings(str(tmp_path / "shards"))
    assert (table.keys, table.captions) == (packed.keys, packed.captions)
    assert np.array_equal(features(tmp_path / "table"), features(tmp_path / "shards"))


def test_shards_and_embeddings_may_lie_on_s3(embed, run, checkpoint, s3, tmp_path):
    data = write_figures(f"{s3}/embed/data", 10)
    done = embed("--out", f"{s3}/embed/out", *PIECE, data=data)
    assert done.returncode == 0, done.stderr
    assert embed("--out", "local", *PIECE, data=data).returncode == 0
    assert np.array_equal(features(f"{s3}/embed/out"), features(tmp_path / "local"))
    assert open_embeddings(f"{s3}/embed/out").sample(9).caption == "caption 0 of 9"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "nothing"), "nothing: no data set here"),
        (("--data", "empty"), "neither a data set of shards nor a folder of images"),
        (("--data", "images", "--only", "text"), "a folder of images, which have no captions"),
        (("--data", "images", "--batch-size", "0"), "--batch-size 0: it must be at least 1"),
        (("--data", "images", "--out", "images/a.png"), "is a file; give a folder"),
        (("--data", "images", "--checkpoint", "gone.pt"), "gone.pt: neither a file or folder"),
        (("--data", "images", "--format", "csv"), "csv"),
    ],
)
def test_what_cannot_be_is_refused(run, checkpoint, picture, tmp_path, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture())
    done = run("embed", "--checkpoint", checkpoint, *flags)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout


def test_damaged_pieces_and_manifests_are_named(embed, tmp_path):
    assert embed("--out", "e", *PIECE).returncode == 0
    folder = tmp_path / "e"
    (folder / "image-000001.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(DataError, match=r"image-000001\.npy: damaged .* delete it and run the same"):
        features(folder)
    np.save(folder / "image-000001.npy", np.zeros((8, 5), np.float32))
    with pytest.raises(
        DataError, match=r"image-000001\.npy: holds \[8, 5\] float32, the manifest says \[8, 128\]"
    ):
        features(folder)
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {"dtype": "float16"}))
    with pytest.raises(DataError, match=r"embeddings\.json: .*its fingerprint does not fit"):
        open_embeddings(str(folder))
