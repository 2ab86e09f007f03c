"""Differences between a checkpoint and a model are named, and files that are no checkpoints refused."""

import pickle

import pytest
import torch

import pmc_clip


def test_prefix_is_optional(golden_config, golden_state):
    plain = {name.removeprefix("module."): tensor for name, tensor in golden_state.items()}
    models = [pmc_clip.create_model(golden_config) for _ in range(2)]
    for model, state in zip(models, (plain, golden_state), strict=True):
        pmc_clip.load_published_state_dict(model, state)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("module.logit_scale"), "missing: logit_scale"),
        (lambda state: state.update({"module.extra": torch.zeros(1)}), "unexpected: extra"),
        (
            lambda state: state.update({"module.text_projection": torch.zeros(3, 2)}),
            r"of another shape: text_projection \(\[3, 2\], the model has \[32, 32\]\)",
        ),
    ],
)
def test_differences_are_named(golden_config, golden_state, change, told):
    state = dict(golden_state)
    change(state)
    with pytest.raises(pmc_clip.ModelError, match=told):
        pmc_clip.load_published_state_dict(pmc_clip.create_model(golden_config), state)


def test_model_without_mlm_takes_a_full_checkpoint(golden_config, golden_state, expected):
    model = pmc_clip.create_model(golden_config, mlm=False).eval()
    pmc_clip.load_published_state_dict(model, golden_state)
    with torch.no_grad():
        found = model.encode_text(expected["input_ids"], normalize=True)
    torch.testing.assert_close(found, expected["text_features"], rtol=0, atol=1e-5)


def test_code_in_a_file_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    file = tmp_path / "bad.pt"
    file.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(pmc_clip.ModelError, match=r"bad\.pt: to read it, io\.open would have to be run"):
        pmc_clip.load_checkpoint_file(file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("length", [0, 1, 5000, -5000, -1])
def test_cut_files_are_named(golden, tmp_path, length):
    cut = tmp_path / "cut.pt"
    cut.write_bytes((golden / "checkpoint.pt").read_bytes()[:length])
    with pytest.raises(pmc_clip.ModelError, match=r"cut\.pt: not a whole checkpoint"):
        pmc_clip.load_checkpoint_file(cut)


def test_files_of_another_kind_are_named(tmp_path):
    (tmp_path / "notes.txt").write_text("captions, one per line\n")
    with pytest.raises(pmc_clip.ModelError, match=r"notes\.txt: not a whole checkpoint"):
        pmc_clip.load_checkpoint_file(tmp_path / "notes.txt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(pmc_clip.ModelError, match=r"list\.pt: holds a list"):
        pmc_clip.load_checkpoint_file(tmp_path / "list.pt")


def test_absent_files_are_named(tmp_path):
    with pytest.raises(pmc_clip.ModelError, match=r"absent\.pt: the checkpoint cannot be read"):
        pmc_clip.load_checkpoint_file(tmp_path / "absent.pt")
