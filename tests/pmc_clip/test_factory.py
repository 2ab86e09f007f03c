"""Models by name, with their transforms, from the checkpoints that a user has; and what importing costs."""

import ast
import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import pmc_clip

PROJECT = Path(__file__).parents[2]


def python(code: str) -> str:
    """Run code in a fresh interpreter that has no way to the hub; what it prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[pmc_clip.PMCCLIP, Path]:
    """A tiny model, and the folder that it was exported to."""
    torch.manual_seed(1)
    model = pmc_clip.create_model("tiny").eval()
    folder = tmp_path_factory.mktemp("models") / "exported"
    pmc_clip.save_folder(model, folder)
    return model, folder


def assert_same_weights(found: pmc_clip.PMCCLIP, expected: pmc_clip.PMCCLIP) -> None:
    found_state, expected_state = found.state_dict(), expected.state_dict()
    assert found_state.keys() == expected_state.keys()
    assert all(torch.equal(found_state[name], tensor) for name, tensor in expected_state.items())


@pytest.mark.parametrize("model", [None, "tiny", Path(pmc_clip.__file__).parent / "configs" / "tiny.json"])
def test_a_checkpoint_loads_with_its_model_left_out_or_named(saved, model):
    original, folder = saved
    found, _, _ = pmc_clip.create_model_and_transforms(model, pretrained=folder)
    assert_same_weights(found, original)
    assert found.config.vision_cfg == original.config.vision_cfg
    captions = ["Axial CT of the chest.", "cells"]
    features = [m.encode_text(pmc_clip.get_tokenizer(m.config)(captions)) for m in (found, original)]
    assert torch.equal(*features)


def test_models_come_ready_for_evaluation(saved):
    for arguments in ({"model": "tiny"}, {"model": "tiny", "pretrained": ""}, {"pretrained": saved[1]}):
        model, _, _ = pmc_clip.create_model_and_transforms(**arguments)
        assert not any(module.training for module in model.modules())


def test_transforms_are_the_models(tmp_path):
    settings = pmc_clip.load_model_config("tiny").to_dict()
    settings["vision_cfg"] |= {"image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    config = pmc_clip.ModelConfig.from_dict(settings)
    model, preprocess_train, preprocess_val = pmc_clip.create_model_and_transforms(config)
    black = Image.new("L", (50, 40))
    for preprocess in (preprocess_train, preprocess_val):
        pixels = preprocess(black)
        assert torch.equal(pixels, torch.full((3, 32, 32), -2.0))
        assert model.encode_image(pixels[None]).shape == (1, 128)


def test_a_contradiction_names_the_fields_and_both_values(saved):
    config = pmc_clip.load_model_config("tiny")
    other = dataclasses.replace(config, text_cfg=dataclasses.replace(config.text_cfg, mask_padding=False))
    with pytest.raises(
        pmc_clip.ModelError, match=r"text_cfg\.mask_padding is False in the model and True"
    ) as told:
        pmc_clip.create_model_and_transforms(other, pretrained=saved[1])
    assert "image_size" not in str(told.value)
    with pytest.raises(pmc_clip.ModelError, match=r"embed_dim is .* in the model and 128 in the checkpoint"):
        pmc_clip.create_model_and_transforms("small", pretrained=saved[1])


@pytest.mark.slow
def test_a_file_that_does_not_say_its_model_is_taken_for_the_published_one(golden):
    with pytest.raises(pmc_clip.ModelError, match=r"visual.conv1.weight .*, the model has \[32, 3, 3, 3\]"):
        pmc_clip.create_model_and_transforms(pretrained=golden / "checkpoint.pt")


def test_masked_token_prediction_follows_the_checkpoint(tmp_path, saved):
    original, folder = saved
    without, _, _ = pmc_clip.create_model_and_transforms(pretrained=folder, mlm=False)
    assert (original.mlm, without.mlm) == (True, False)
    pmc_clip.save_folder(without, tmp_path / "towers")
    towers, _, _ = pmc_clip.create_model_and_transforms(pretrained=tmp_path / "towers")
    assert not towers.mlm
    assert_same_weights(towers, without)
    with pytest.raises(pmc_clip.ModelError, match="no weights for masked-token prediction"):
        pmc_clip.create_model_and_transforms(pretrained=tmp_path / "towers", mlm=True)


def test_no_tower_is_fetched_that_the_checkpoint_holds(tmp_path, saved):
    """The config names a BERT that is nowhere; its tower's shape is there, so nothing asks for it."""
    settings = pmc_clip.load_model_config("tiny").to_dict()
    settings["text_cfg"]["bert_model_name"] = str(tmp_path / "nowhere")
    config = pmc_clip.ModelConfig.from_dict(settings)
    pmc_clip.save_folder(pmc_clip.create_model(config, pretrained_text=False), tmp_path / "named")
    with pytest.raises(pmc_clip.ModelError, match="cannot be loaded"):
        pmc_clip.create_model_and_transforms(config)
    model, _, _ = pmc_clip.create_model_and_transforms(config, pretrained=tmp_path / "named")
    assert model.config.text_cfg == config.text_cfg
    with pytest.raises(pmc_clip.ModelError, match="leave out pretrained_image"):
        pmc_clip.create_model_and_transforms(pretrained=saved[1], pretrained_image=True)


def test_every_exported_name_is_where_the_package_says_and_documented():
    tree = ast.parse(Path(pmc_clip.__file__).read_text(encoding="utf-8"))
    imported = {
        (node.module.removeprefix("pmc_clip."), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pmc_clip.")
        for alias in node.names
    }
    assert imported == {(module, name) for name, module in pmc_clip._MODULE_OF.items()}
    for name in pmc_clip.__all__:
        value = getattr(pmc_clip, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), name
    assert Path(pmc_clip.__file__).with_name("py.typed").is_file()  # else type checkers pass it over


def test_importing_takes_no_torch_and_a_model_no_transformers():
    printed = python(
        "import sys, time; begin = time.perf_counter(); import pmc_clip; took = time.perf_counter() - begin\n"
        "print(took < 1, 'torch' in sys.modules, 'transformers' in sys.modules)\n"
        "model, train, val = pmc_clip.create_model_and_transforms('tiny')\n"
        "tokenizer = pmc_clip.get_tokenizer('tiny'); model.encode_text(tokenizer(['a cell']))\n"
        "config = pmc_clip.load_model_config('tiny').to_dict()\n"
        "config['text_cfg']['bert_model_name'] = 'owner/name'\n"
        "pmc_clip.create_model(pmc_clip.ModelConfig.from_dict(config), pretrained_text=False)\n"
        "print('transformers' in sys.modules)"
    )
    assert printed.split() == ["True", "False", "False", "False"]


def test_the_package_works_without_the_pipeline(tmp_path):
    printed = python(f"""
import sys
sys.modules |= dict.fromkeys(("pipeline", "shards"))  # importing them fails
import numpy as np, torch, pmc_clip
from PIL import Image

model, preprocess_train, preprocess_val = pmc_clip.create_model_and_transforms("tiny")
tokenizer = pmc_clip.get_tokenizer("tiny")
images = torch.stack([preprocess_val(Image.new("L", (90, 70), shade)) for shade in (0, 200)])
tokens = tokenizer(["a dark figure", "a light figure"])
masked, labels = pmc_clip.mask_tokens(tokens, np.zeros((*tokens.shape, 3)), tokenizer)
output = model.train()(images, masked, labels)
match = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
total = pmc_clip.LossWeights.parse("0.5,0.5").total(match, output.mlm_loss)
total.backward()
pmc_clip.save_folder(model, {str(tmp_path / "out")!r})
pmc_clip.create_model_and_transforms(pretrained={str(tmp_path / "out")!r})
print(torch.isfinite(total).item(), len(pmc_clip.list_pretrained()) > 0, "tiny" in pmc_clip.list_models())
print([getattr(pmc_clip, name) for name in pmc_clip.__all__] and None)
""")
    assert printed.split() == ["True", "True", "True", "None"]
