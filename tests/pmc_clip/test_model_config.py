"""Configs: shipped ones load and survive the trip to JSON; wrong ones are refused with the field's name."""

import json
import subprocess
import sys

import pytest

import pmc_clip


@pytest.mark.parametrize("name", pmc_clip.list_models())
def test_round_trip_through_json(name, tmp_path):
    config = pmc_clip.load_model_config(name)
    file = tmp_path / "model.json"
    file.write_text(json.dumps(config.to_dict()))
    assert pmc_clip.load_model_config(file) == config
    assert pmc_clip.load_model_config(config) is config


def test_published_values_of_rn50_fusion4():
    config = pmc_clip.load_model_config("RN50_fusion4")
    text = config.text_cfg
    assert (config.embed_dim, config.vision_cfg.image_size, config.vision_cfg.layers) == (
        768,
        224,
        (3, 4, 6, 3),
    )
    assert config.vision_cfg.heads == 32
    assert (text.vocab_size, text.width, text.heads, text.layers, text.fusion_layers) == (
        30522,
        768,
        8,
        12,
        4,
    )
    assert not text.mask_padding


def _set(settings: dict, place: str, value: object) -> None:
    *folders, field = place.split(".")
    for folder in folders:
        settings = settings[folder]
    settings[field] = value


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("text_cfg.widht", 128, "text_cfg: unknown field 'widht'"),
        ("vision_cfg.timm_model_name", "x", "vision_cfg: unknown field 'timm_model_name'"),
        ("text_cfg.bert.num_hiden_layers", 2, "bert: unknown field 'num_hiden_layers'"),
        ("text_cfg.bert.hidden_size", 64, "bert.hidden_size is 64 and text_cfg.width is 128"),
        ("text_cfg.bert.is_decoder", True, "is_decoder is True: only False"),
        ("text_cfg.bert.max_position_embeddings", 20, "max_position_embeddings is 20: raise it"),
        ("text_cfg.bert.num_attention_heads", 3, "num_attention_heads is 3, which does not divide"),
        ("text_cfg.heads", 3, "text_cfg.heads is 3"),
        ("text_cfg.width", "128", "text_cfg: width: expected int, got '128'"),
        ("text_cfg.pool", "mean", "text_cfg.pool is 'mean': choose one of cls"),
        ("text_cfg.mask_padding", 1, "mask_padding: expected bool"),
        ("text_cfg.fusion_layers", 0, "fusion_layers is 0"),
        ("embed_dim", 64, "embed_dim is 64 and text_cfg.width is 128"),
        ("clip_model", "CLIP", "'PMC_CLIP' is the only one"),
        ("vision_cfg.backbone", "MAE", "choose one of ModifiedRN50"),
        ("vision_cfg.image_size", 100, "multiple of 32"),
        ("vision_cfg.layers", [1, 1, 1], "vision_cfg: layers: expected a list of 4"),
        ("vision_cfg.patch_size", 16, "patch_size"),
        ("vision_cfg.width", 7, "make it even"),
        ("vision_cfg.head_width", 50, "head_width is 50"),
        ("vision_cfg", None, "vision_cfg: expected an object"),
    ],
)
def test_wrong_fields_are_refused_by_name(place, value, told):
    settings = pmc_clip.load_model_config("tiny").to_dict()
    _set(settings, place, value)
    with pytest.raises(pmc_clip.ModelError) as error:
        pmc_clip.ModelConfig.from_dict(settings)
    assert told in str(error.value)


def test_missing_field_is_named():
    with pytest.raises(pmc_clip.ModelError, match="'embed_dim' is missing"):
        pmc_clip.ModelConfig.from_dict({"vision_cfg": {}, "text_cfg": {}})


def test_unknown_model_names_the_known():
    with pytest.raises(
        pmc_clip.ModelError, match="unknown model 'tinny': give one of RN50_fusion4, small, tiny"
    ):
        pmc_clip.load_model_config("tinny")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(pmc_clip.ModelError, match=r"absent\.json: the model config cannot be read"):
        pmc_clip.load_model_config(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(pmc_clip.ModelError, match=r"bad\.json: not a JSON file"):
        pmc_clip.load_model_config(tmp_path / "bad.json")


def test_text_tower_that_cannot_be_loaded_says_what_to_do(tmp_path):
    settings = pmc_clip.load_model_config("RN50_fusion4").to_dict()
    settings["text_cfg"]["bert_model_name"] = str(tmp_path)  # an empty folder
    config = pmc_clip.ModelConfig.from_dict(settings)
    with pytest.raises(pmc_clip.ModelError, match="pretrained_text=False"):
        pmc_clip.create_model(config)
    with pytest.raises(pmc_clip.ModelError, match=r"text_cfg\.tokenizer"):
        pmc_clip.get_tokenizer(config)


def test_import_is_light_and_offers_every_name():
    code = """
import sys, pmc_clip
assert not {"torch", "transformers", "torchvision"} & set(sys.modules)
for name in pmc_clip.__all__:
    getattr(pmc_clip, name)
assert "torch" in sys.modules
assert not {"transformers", "torchvision"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
