"""open_clip itself loads what is exported for it, and computes the same features."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pmc_clip
from pmc_clip.export import save_open_clip

CAPTIONS = [
    "Axial CT of the chest showing a large left lung mass (arrow).",
    "x-ray",
    "Histology, 40 % [CLS].",
]
MASKED = {"mask_padding": True}


@pytest.fixture(autouse=True)
def offline() -> Iterator[None]:
    """transformers and timm find all they need in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


def build(mlm: bool = True, **changes: Any) -> pmc_clip.PMCCLIP:
    """The tiny model, changed, with weights drawn from a seed and BatchNorm statistics of some images."""
    told = pmc_clip.load_model_config("tiny").to_dict()
    told["text_cfg"] |= changes.pop("text", {})
    told["vision_cfg"] = changes.pop("vision", told["vision_cfg"])
    torch.manual_seed(0)
    model = pmc_clip.create_model(pmc_clip.ModelConfig.from_dict(told | changes), mlm=mlm)
    with torch.no_grad():
        model.encode_image(images(model))
    return model.eval()


def images(model: pmc_clip.PMCCLIP) -> torch.Tensor:
    size = model.config.vision_cfg.image_size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def open_in_open_clip(folder: Path) -> tuple[Any, Any, Any]:
    """open_clip's (model, evaluation transform, tokeniser)."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text": {"pool": "pooler"}, "init_logit_bias": -10.0, "mlm": False},
        {"vision": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "head_width": 256}},
        {"vision": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 512}},
        {"vision": {"image_size": 96, "timm_model_name": "test_resnet"}},
        {"vision": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "mlp"}},
        {"vision": {"image_size": 96, "timm_model_name": "test_byobnet", "timm_pool": "rot_attn"}},
    ],
    ids=[
        "tiny",
        "pooler and bias",
        "few heads",
        "one head",
        "timm resnet",
        "timm vit",
        "timm attention pool",
    ],
)
def test_features_are_the_same_in_open_clip(tmp_path, changes):
    model = build(**changes)
    save_open_clip(model, tmp_path / "out")
    theirs, _, tokenizer = open_in_open_clip(tmp_path / "out")
    ours = pmc_clip.get_tokenizer(model.config)(CAPTIONS)
    tokens = tokenizer(CAPTIONS)
    assert tokens.shape == (3, 77)
    assert torch.equal(tokens[:, : ours.shape[1]], ours)
    assert not tokens[:, ours.shape[1] :].any()
    with torch.no_grad():
        found = theirs(images(model), tokens)
        expected = model(images(model), ours)
    for mine, other in zip(expected[:3], found, strict=False):
        torch.testing.assert_close(other, mine, rtol=0, atol=1e-5)
    assert (theirs.logit_bias is None) == (expected.logit_bias is None)
    if expected.logit_bias is not None:
        assert theirs.logit_bias.item() == expected.logit_bias.item()


def test_pictures_become_the_same_pixels_in_open_clip(tmp_path):
    vision = {
        "image_size": 32,
        "layers": [1, 1, 1, 1],
        "width": 8,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    }
    model = build(vision=vision)
    save_open_clip(model, tmp_path / "out")
    _, preprocess, _ = open_in_open_clip(tmp_path / "out")
    pixels = np.random.default_rng(0).integers(0, 255, (45, 70, 3), np.uint8)
    ours = pmc_clip.EvalTransform(32, model.config.vision_cfg.mean, model.config.vision_cfg.std)
    picture = Image.fromarray(pixels)
    torch.testing.assert_close(preprocess(picture), ours(picture), rtol=0, atol=1e-5)


def test_a_vocabulary_with_capitals_keeps_them(tmp_path):
    """The way text is split travels with the vocabulary."""
    vocabulary = tmp_path / "cased"
    vocabulary.mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "CT", "ct", "scan"]
    (vocabulary / "vocab.txt").write_text("\n".join(pieces))
    (vocabulary / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    model = build(text={"tokenizer": str(vocabulary)})
    save_open_clip(model, tmp_path / "out")
    _, _, tokenizer = open_in_open_clip(tmp_path / "out")
    assert tokenizer("CT ct Scan")[0, :6].tolist() == [2, 5, 6, 1, 3, 0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"text": {"mask_padding": False}},
            "it keeps padding out of attention, and this model was trained to",
        ),
        (
            {"vision": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "backbone": "RN50"}},
            "it has no image tower like vision_cfg.backbone 'RN50'",
        ),
        (
            {"vision": {"image_size": 96, "timm_model_name": "test_vit"}},
            "it builds timm's 'test_vit' for 160 px, and vision_cfg.image_size is 96",
        ),
    ],
)
def test_what_open_clip_cannot_compute_is_refused(tmp_path, changes, reason):
    with pytest.raises(pmc_clip.ModelError, match=f"{reason}.*Export it in this package's own layout"):
        save_open_clip(build(**changes), tmp_path / "out")
    assert not list(tmp_path.iterdir())
