"""`python -m pipeline.export`: weights of every kind go in, every layout comes out, bad requests are told."""

import json
from pathlib import Path

import pytest
import torch

import pmc_clip
from tests.checkpoints import write_checkpoint


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The `latest` of a run that trained the tiny model with masked-token prediction."""
    return write_checkpoint(tmp_path / "runs" / "a" / "checkpoints")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_becomes_a_folder_that_loads(run, checkpoint, tmp_path):
    done = run("export", "--checkpoint", checkpoint, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert 'pmc_clip.create_model_and_transforms(pretrained="out")' in done.stdout
    assert files(tmp_path / "out") == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    found, _, _ = pmc_clip.create_model_and_transforms(pretrained=tmp_path / "out")
    trained, _, _ = pmc_clip.create_model_and_transforms(pretrained=checkpoint)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_a_run_becomes_a_folder_for_open_clip(run, checkpoint, tmp_path):
    done = run("export", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--layout", "open_clip")
    assert done.returncode == 0, done.stderr
    assert f'"local-dir:{tmp_path / "out"}"' in done.stdout
    assert "without the part for masked-token prediction" in done.stdout
    told = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert told["model_cfg"]["text_cfg"]["hf_model_name"] == str(tmp_path / "out")


def test_published_weights_go_in_and_out(run, shared, tmp_path):
    """They do not say which model they are of."""
    golden = shared / "golden" / "tiny_modified"
    told = json.loads((golden / "config.json").read_text())
    told["model"]["text_cfg"] |= {"bert": told["bert"], "tokenizer": str(golden / "bert")}
    (tmp_path / "golden.json").write_text(json.dumps(told["model"]))
    done = run(
        "export", "--checkpoint", golden / "checkpoint.pt", "--model", "golden.json", "--out", "folder"
    )
    assert done.returncode == 0, done.stderr
    done = run("export", "--checkpoint", "folder", "--layout", "published", "--out", "again")
    assert done.returncode == 0, done.stderr
    assert "again/checkpoint.pt" in done.stdout
    before, after = (
        pmc_clip.load_checkpoint_file(path)["state_dict"]
        for path in (golden / "checkpoint.pt", tmp_path / "again" / "checkpoint.pt")
    )
    assert before.keys() == after.keys()
    assert torch.equal(before["module.mlm_projection"], after["module.mlm_projection"])


def test_nothing_is_replaced_unasked(run, checkpoint, tmp_path):
    for layout in ("folder", "open_clip"):
        arguments = ("export", "--checkpoint", checkpoint, "--out", layout, "--layout", layout)
        assert run(*arguments).returncode == 0
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"{layout} holds an export: give another folder, or ask to overwrite it" in done.stderr
        assert run(*arguments, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "gone.pt"], "gone.pt: neither a file or folder, nor one of the tags beta"),
        (["--layout", "published"], "the published code cannot compute this model: it reads padding"),
        (["--model", "small"], "is of a run and says its model: leave the flag out"),
        (["--out", "s3://bucket/out"], "--out s3://bucket/out: only a path on this machine"),
        (["--out", "runs"], "runs holds a, which would be lost"),
    ],
)
def test_bad_requests_are_named(run, checkpoint, tmp_path, arguments, said):
    done = run("export", "--checkpoint", checkpoint, "--out", "out", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert files(tmp_path) == {"runs"}


def test_a_place_that_cannot_be_written_is_named(run, checkpoint):
    done = run("export", "--checkpoint", checkpoint, "--out", "/proc/out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: /proc/out: the export could not be written (")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_published_weights_are_of_the_published_model_unless_told(run, shared, tmp_path):
    golden = shared / "golden" / "tiny_modified" / "checkpoint.pt"
    done = run("export", "--checkpoint", golden, "--out", "out")
    assert done.returncode == 2
    assert "checkpoint.pt: does not fit the model" in done.stderr
    assert not (tmp_path / "out").exists()
