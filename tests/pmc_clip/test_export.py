"""Exports in this package's own layout and the published one compute the same when they are loaded."""

import dataclasses
import json
import resource
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors import safe_open

import pmc_clip
from pmc_clip.export import read_folder, save_folder, save_published
from pmc_clip.export.published import published_state_dict

CAPTIONS = ["Axial CT of the chest showing a large left lung mass (arrow).", "x-ray", "a [CLS] b"]
Build = Callable[..., pmc_clip.PMCCLIP]


@pytest.fixture
def build() -> Build:
    """`build(mlm=False, text={…}, vision={…}, init_logit_bias=-10.0)`: the tiny model, changed, with weights
    drawn from a seed.
    """

    def build_model(mlm: bool = True, **changes: Any) -> pmc_clip.PMCCLIP:
        told = pmc_clip.load_model_config("tiny").to_dict()
        told["text_cfg"] |= {"mask_padding": False} | changes.pop("text", {})
        told["vision_cfg"] |= changes.pop("vision", {})
        torch.manual_seed(0)
        return pmc_clip.create_model(pmc_clip.ModelConfig.from_dict(told | changes), mlm=mlm).eval()

    return build_model


def features(model: pmc_clip.PMCCLIP, tokens: torch.Tensor | None = None) -> list[torch.Tensor]:
    size = model.config.vision_cfg.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokens = pmc_clip.get_tokenizer(model.config)(CAPTIONS) if tokens is None else tokens
    with torch.no_grad():
        image = model.encode_image(images)
        found = [image, model.encode_text(tokens)]
        if model.mlm:
            found.append(model.fuse(tokens[:2], image))
    return found


def assert_same(first: pmc_clip.PMCCLIP, second: pmc_clip.PMCCLIP) -> None:
    for ours, theirs in zip(features(first), features(second), strict=True):
        assert torch.equal(ours, theirs)


@contextmanager
def room_for(size: int):
    """Files can grow no larger: it stands for the disk's end, with an error of the system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlm": False},
        {"text": {"mask_padding": True, "pool": "pooler"}},
        {"vision": {"backbone": "RN50"}, "init_logit_bias": -10.0},
    ],
)
def test_a_folder_loads_again_wherever_it_is(build, tmp_path, changes):
    model = build(**changes)
    save_folder(model, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    loaded, _, _ = pmc_clip.create_model_and_transforms(pretrained=tmp_path / "there")
    assert loaded.mlm == model.mlm
    assert loaded.config.text_cfg.tokenizer == str(tmp_path / "there")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert_same(model, loaded)


def test_a_folder_needs_nothing_of_the_machine_it_was_written_on(golden, golden_config, tmp_path):
    """The golden BERT's shape and vocabulary are read from a folder, as from the hub's cache."""
    text = dataclasses.replace(
        golden_config.text_cfg, bert=None, bert_model_name=str(golden / "bert"), tokenizer=None
    )
    config = dataclasses.replace(golden_config, text_cfg=text)
    model = pmc_clip.create_model(config, pretrained_text=False).eval()
    save_folder(model, tmp_path / "out")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert str(golden) not in (tmp_path / "out" / file).read_text()
    loaded, _, _ = pmc_clip.create_model_and_transforms(pretrained=tmp_path / "out")
    assert loaded.config.text_cfg.bert is not None
    assert loaded.config.text_cfg.bert.num_attention_heads == 4
    assert_same(model, loaded)


def test_an_exported_model_can_be_exported(build, tmp_path):
    save_folder(build(), tmp_path / "first")
    loaded, _, _ = pmc_clip.create_model_and_transforms(pretrained=tmp_path / "first")
    save_folder(loaded, tmp_path / "second")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_tensors_are_stored_as_other_readers_expect_them(build, tmp_path):
    model = build().to(memory_format=torch.channels_last)
    assert not model.visual.conv2.weight.is_contiguous()
    save_folder(model, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(model.state_dict())
        assert torch.equal(file.get_tensor("visual.conv2.weight"), model.visual.conv2.weight)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["library_name"], config["format_version"], config["mlm"]) == ("pmc_clip", 1, True)


def test_other_libraries_read_the_tokeniser(build, tmp_path):
    from transformers import AutoTokenizer

    model = build()
    save_folder(model, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    found = theirs(CAPTIONS, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    assert torch.equal(found, pmc_clip.get_tokenizer(model.config)(CAPTIONS))
    assert theirs.mask_token_id == pmc_clip.get_tokenizer(model.config).mask_id
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert len(plain.encode("x-ray " * 200).ids) > 200  # how long captions may be is the config's matter


def test_a_card_is_ready_for_the_hub(build, tmp_path):
    from huggingface_hub import ModelCard

    save_folder(build(), tmp_path / "liver-ct")
    card = ModelCard.load(tmp_path / "liver-ct" / "README.md")
    assert card.data.library_name == "pmc_clip"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert "# liver-ct" in card.text


def test_nothing_is_replaced_unasked(build, tmp_path):
    out = tmp_path / "out"
    save_folder(build(), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(pmc_clip.ModelError, match="out holds an export: give another folder, or ask"):
        save_folder(build(mlm=False), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    save_folder(build(mlm=False), out, overwrite=True)
    assert read_folder(out)[2] is False
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_of_no_export_is_never_replaced(build, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "ideas.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(pmc_clip.ModelError, match=r"notes holds ideas\.txt, which would be lost"):
        save_folder(build(), tmp_path / "notes", overwrite=True)
    with pytest.raises(pmc_clip.ModelError, match="file is a file: give a folder"):
        save_folder(build(), tmp_path / "file", overwrite=True)
    with pytest.raises(pmc_clip.ModelError, match="notes is a folder: give the path of a file"):
        save_published(build(), tmp_path / "notes", overwrite=True)
    with pytest.raises(pmc_clip.ModelError, match="file exists: give another path"):
        save_published(build(), tmp_path / "file")
    assert (tmp_path / "notes" / "ideas.txt").read_text() == (tmp_path / "file").read_text() == "precious"


def test_an_empty_folder_is_filled(build, tmp_path):
    (tmp_path / "out").mkdir()
    save_folder(build(), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("save", [save_folder, save_published])
def test_a_full_disk_leaves_what_was_there(build, tmp_path, save):
    save(build(mlm=False), tmp_path / "out")
    before = sorted(tmp_path.rglob("*")), sum(path.stat().st_size for path in tmp_path.rglob("*"))
    with room_for(500_000), pytest.raises(OSError, match=r"out: the export could not be written .*make room"):
        save(build(), tmp_path / "out", overwrite=True)
    assert (sorted(tmp_path.rglob("*")), sum(path.stat().st_size for path in tmp_path.rglob("*"))) == before


def test_a_model_without_its_vocabulary_leaves_no_half_folder(build, tmp_path):
    with pytest.raises(pmc_clip.ModelError, match="'gone' is no folder and not shipped"):
        save_folder(build(text={"tokenizer": "gone"}), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not a JSON file"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: not the config of an exp"),
        (
            lambda folder: (folder / "config.json").write_text('{"format_version": 2, "model": {}}'),
            r"config\.json: not the config of an exported model \(format version 1\)",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: .*cannot be read"),
        (
            lambda folder: cut(folder / "model.safetensors"),
            r"model\.safetensors: not a whole safetensors file",
        ),
    ],
)
def test_damaged_folders_are_named(build, tmp_path, damage, told):
    save_folder(build(), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(pmc_clip.ModelError, match=told):
        read_folder(tmp_path / "out")


def test_the_published_checkpoint_comes_back(golden_model, golden_state, tmp_path):
    """Every name, shape and type; and every value, but of what the published code never reads."""
    path = tmp_path / "deep" / "checkpoint.pt"
    save_published(golden_model, path, name="golden", epoch=3)
    written = pmc_clip.load_checkpoint_file(path)
    assert (written["name"], written["epoch"]) == ("golden", 3)
    state = written["state_dict"]
    assert state.keys() == golden_state.keys()
    unread = ("module.positional_embedding", "module.text_encoder.pooler.", "module.ln_final.")
    for name, tensor in golden_state.items():
        assert (state[name].shape, state[name].dtype) == (tensor.shape, tensor.dtype), name
        assert torch.equal(state[name], tensor) or name.startswith(unread), name
    assert torch.equal(state["module.ln_final.weight"], torch.ones(32))
    assert not state["module.ln_final.bias"].any()
    assert 0.005 < state["module.positional_embedding"].std() < 0.02


def test_without_masked_tokens_only_their_projection_is_missing(golden_config, golden_state, tmp_path):
    """As in the published code, where the fusion transformer is always built."""
    model = pmc_clip.create_model(golden_config, mlm=False).eval()
    pmc_clip.load_published_state_dict(model, golden_state)
    save_published(model, tmp_path / "checkpoint.pt")
    state = pmc_clip.load_checkpoint_file(tmp_path / "checkpoint.pt")["state_dict"]
    assert golden_state.keys() - state.keys() == {"module.mlm_projection"}
    assert all(golden_state[name].shape == tensor.shape for name, tensor in state.items())
    loaded, _, _ = pmc_clip.create_model_and_transforms(golden_config, pretrained=tmp_path / "checkpoint.pt")
    assert not loaded.mlm
    assert_same(model, loaded)


def test_the_real_model_has_the_published_tensors():
    """593 and the position ids, as its authors' checkpoint."""
    with torch.device("meta"):
        model = pmc_clip.create_model("RN50_fusion4", pretrained_text=False, device="meta")
    state = published_state_dict(model)
    assert len(state) == 594
    assert state["text_encoder.embeddings.position_ids"].shape == (1, 512)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_the_published_checkpoint_of_the_real_model_loads_by_its_path(tmp_path, prefix):
    torch.manual_seed(0)
    model = pmc_clip.create_model("RN50_fusion4", pretrained_text=False)
    state = {f"{prefix}{name}": tensor for name, tensor in published_state_dict(model).items()}
    assert len(state) == 594
    torch.save({"epoch": 1, "name": "beta", "state_dict": state}, tmp_path / "checkpoint.pt")
    loaded, _, _ = pmc_clip.create_model_and_transforms("RN50_fusion4", pretrained=tmp_path / "checkpoint.pt")
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_one_model_gives_one_published_file_and_disturbs_no_randomness(build, tmp_path):
    model = build(mlm=False)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    save_published(model, tmp_path / "first" / "checkpoint.pt")
    assert torch.equal(torch.rand(1), expected)
    save_published(model, tmp_path / "second" / "checkpoint.pt")
    first, second = (
        pmc_clip.load_checkpoint_file(tmp_path / name / "checkpoint.pt")["state_dict"]
        for name in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": {"mask_padding": True}}, "it reads padding, which text_cfg.mask_padding keeps out"),
        (
            {"text": {"pool": "pooler"}},
            "its text feature is the state at .CLS., .*is 'pooler'",
        ),
        ({"init_logit_bias": -10.0}, "it has no logit bias"),
        ({"vision": {"backbone": "RN50"}}, "its plain ResNet has width 64, and vision_cfg.width is 8"),
    ],
)
def test_what_the_published_code_cannot_compute_is_refused(build, tmp_path, changes, reason):
    with pytest.raises(pmc_clip.ModelError, match=f"{reason}. Export it in this package's own layout"):
        save_published(build(**changes), tmp_path / "checkpoint.pt")
    assert not list(tmp_path.iterdir())
