"""Configs: shipped ones load and survive the trip to JSON; wrong ones are refused with the field's name."""

import json
import subprocess
import sys

import pytest
import torch

import pmc_clip
from pmc_clip import config_rules, text_tower

PUBLISHED = "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"


@pytest.fixture
def settings() -> dict:
    return pmc_clip.load_model_config("tiny").to_dict()


def _set(settings: dict, place: str, value: object) -> None:
    *folders, field = place.split(".")
    for folder in folders:
        settings = settings[folder]
    settings[field] = value


def _refusal(settings: dict) -> str:
    with pytest.raises(pmc_clip.ModelError) as error:
        pmc_clip.ModelConfig.from_dict(settings, "model.json")
    return str(error.value)


@pytest.mark.parametrize("name", pmc_clip.list_models())
def test_round_trip_through_json(name, tmp_path):
    config = pmc_clip.load_model_config(name)
    file = tmp_path / "model.json"
    file.write_text(json.dumps(config.to_dict()))
    assert pmc_clip.load_model_config(file) == config
    assert pmc_clip.load_model_config(config) is config


@pytest.mark.parametrize(
    ("name", "image_size", "layers", "width", "attention_heads", "fusion_layers"),
    [
        ("RN50_fusion1", 224, (3, 4, 6, 3), 64, 32, 1),
        ("RN50_fusion2", 224, (3, 4, 6, 3), 64, 32, 2),
        ("RN50_fusion4", 224, (3, 4, 6, 3), 64, 32, 4),
        ("RN50_fusion8", 224, (3, 4, 6, 3), 64, 32, 8),
        ("RN101_fusion4", 224, (3, 4, 23, 3), 64, 32, 4),
        ("RN50x4_fusion4", 288, (4, 6, 10, 6), 80, 40, 4),
        ("RN50x16_fusion4", 384, (6, 8, 18, 8), 96, 48, 4),
    ],
)
def test_published_configs_say_what_was_published(
    name, image_size, layers, width, attention_heads, fusion_layers
):
    config = pmc_clip.load_model_config(name)
    vision, text = config.vision_cfg, config.text_cfg
    assert (vision.backbone, vision.image_size, vision.layers) == ("ModifiedRN50", image_size, layers)
    assert (vision.width, vision.heads) == (width, attention_heads)
    assert (config.embed_dim, text.context_length, text.vocab_size) == (768, 77, 30522)
    assert (text.width, text.heads, text.layers, text.fusion_layers) == (768, 8, 12, fusion_layers)
    assert (text.bert_model_name, text.pool, text.mask_padding) == (PUBLISHED, "cls", False)
    assert config.init_logit_bias is None


def test_split_variant_has_the_recipe_of_the_three_published_files():
    config = pmc_clip.load_model_config("RN50_split")
    assert config.vision_cfg.heads == 8
    assert (config.text_cfg.pool, config.text_cfg.mask_padding) == ("pooler", True)
    assert config.init_logit_scale == 4.4292


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_small_models_leave_padding_out(name):
    assert pmc_clip.load_model_config(name).text_cfg.mask_padding


def _on_paper(name: str, **settings: bool) -> pmc_clip.PMCCLIP:
    """The model with shapes and no memory."""
    with torch.device("meta"):
        return pmc_clip.PMCCLIP(pmc_clip.load_model_config(name), pretrained_text=False, **settings)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "clip_embed_dim"),
    # CLIP's image towers, as open_clip's docs/model_profile.csv counts them, have the same shapes but for the
    # width of their features.
    [
        ("RN50_fusion4", 38.32, 1024),
        ("RN101_fusion4", 56.26, 512),
        ("RN50x4_fusion4", 87.14, 640),
        ("RN50x16_fusion4", 167.33, 768),
    ],
)
def test_image_towers_have_the_size_of_clips(name, millions, clip_embed_dim):
    tower = _on_paper(name, mlm=False).visual
    last = tower.attnpool.c_proj
    wider = (clip_embed_dim - last.out_features) * (last.in_features + 1)
    assert round((_count(tower) + wider) / 1e6, 2) == millions


@pytest.mark.parametrize("fusion_layers", [1, 2, 4, 8])
def test_text_tower_is_bert_base_and_fusion_layers_are_as_many_as_named(fusion_layers):
    model = _on_paper(f"RN50_fusion{fusion_layers}")
    assert _count(model.text_encoder) == 108_891_648  # BERT-base without its pooler
    assert _count(model.fusion_module) == fusion_layers * 7_087_872  # 12 * 768² + 13 * 768 each


def test_split_text_tower_is_bert_base_with_its_pooler():
    assert _count(_on_paper("RN50_split", mlm=False).text_encoder) == 109_482_240


def test_full_model_has_the_tensors_of_the_published_checkpoint():
    unused = 5  # positional_embedding, ln_final (2), the pooler (2): stored, and part of no computation
    assert len(_on_paper("RN50_fusion4").state_dict()) + unused == 593


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("text_cfg.widht", 128, "text_cfg: unknown field 'widht'"),
        ("vision_cfg.mlp_ratio", 4.0, "vision_cfg: unknown field 'mlp_ratio'"),
        ("text_cfg.bert.num_hiden_layers", 2, "bert: unknown field 'num_hiden_layers'"),
        ("text_cfg.bert.BOOKKEEPING", {}, "bert: unknown field 'BOOKKEEPING'"),
        ("text_cfg.bert.hidden_size", 64, "bert.hidden_size is 64 and text_cfg.width is 128"),
        ("text_cfg.bert.is_decoder", True, "is_decoder is True: only False"),
        ("text_cfg.bert.max_position_embeddings", 20, "max_position_embeddings is 20: raise it"),
        ("text_cfg.bert.num_attention_heads", 3, "num_attention_heads is 3, which does not divide"),
        ("text_cfg.bert.num_attention_heads", 0, "num_attention_heads is 0: it must be at least 1"),
        ("text_cfg.bert.intermediate_size", 0, "intermediate_size is 0: it must be at least 1"),
        ("text_cfg.bert.hidden_act", "swish", "hidden_act is 'swish': choose one of gelu, gelu_new, relu"),
        ("text_cfg.bert.hidden_dropout_prob", 1.0, "hidden_dropout_prob is 1.0: give a share"),
        ("text_cfg.bert.attention_probs_dropout_prob", -0.1, "attention_probs_dropout_prob is -0.1"),
        ("text_cfg.bert.layer_norm_eps", 0.0, "layer_norm_eps is 0.0: make it above 0"),
        ("text_cfg.bert.pad_token_id", 1, "pad_token_id is 1: make it 0"),
        ("text_cfg.heads", 3, "text_cfg.heads is 3"),
        ("text_cfg.width", "128", "text_cfg: width: expected int, got '128'"),
        ("text_cfg.pool", "mean", "text_cfg.pool is 'mean': choose one of cls, pooler"),
        ("text_cfg.mask_padding", 1, "mask_padding: expected bool"),
        ("text_cfg.fusion_layers", 0, "fusion_layers is 0"),
        ("text_cfg.context_length", 2, "context_length is 2"),
        ("embed_dim", 64, "embed_dim is 64 and text_cfg.width is 128"),
        ("clip_model", "CLIP", "'PMC_CLIP' is the only one"),
        ("init_logit_scale", float("nan"), "init_logit_scale is nan: make it a finite number"),
        ("init_logit_bias", float("-inf"), "init_logit_bias is -inf: make it a finite number"),
        ("vision_cfg.backbone", "MAE", "choose one of ModifiedRN50, RN50"),
        ("vision_cfg.image_size", 100, "multiple of 32"),
        ("vision_cfg.layers", [1, 1, 1], "vision_cfg: layers: expected a list of 4"),
        ("vision_cfg.layers", [1, 1, 0, 1], "vision_cfg.layers[2] is 0"),
        ("vision_cfg.patch_size", 16, "patch_size is 16: a ResNet has no patches"),
        ("vision_cfg.width", 7, "make it even"),
        ("vision_cfg.head_width", 50, "head_width is 50"),
        ("vision_cfg.mean", [123.7, 116.3, 103.5], "vision_cfg.mean is [123.7, 116.3, 103.5]"),
        ("vision_cfg.std", [0.2, 0.2, 0], "vision_cfg.std is [0.2, 0.2, 0.0]"),
        ("vision_cfg.std", [0.2, 0.2, float("nan")], "vision_cfg.std is [0.2, 0.2, nan]"),
        ("vision_cfg.timm_pool", "token", "timm_pool is 'token' without a vision_cfg.timm_model_name"),
        ("vision_cfg.timm_model_pretrained", True, "timm_model_pretrained is True without"),
        ("vision_cfg", None, "vision_cfg: expected an object"),
    ],
)
def test_wrong_fields_are_refused_by_name_and_place(settings, place, value, told):
    _set(settings, place, value)
    message = _refusal(settings)
    assert told in message
    assert message.startswith("model.json: ")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"layers": [1, 1, 1, 1]},
            "layers is (1, 1, 1, 1) beside vision_cfg.timm_model_name 'convnext_atto'",
        ),
        ({"width": 8}, "width is 8 beside"),
        ({"head_width": 32}, "head_width is 32 beside"),
        ({"backbone": "RN50"}, "backbone is 'RN50' beside"),
        ({"patch_size": 16}, "patch_size is 16 beside"),
        ({"timm_proj": "conv"}, "timm_proj is 'conv': choose one of linear, mlp, none"),
        ({"timm_proj": ""}, "timm_proj is '': choose one of"),
    ],
)
def test_timm_models_have_a_shape_of_their_own(settings, fields, told):
    settings["vision_cfg"] = {"timm_model_name": "convnext_atto", **fields}
    assert told in _refusal(settings)


def test_sizes_that_only_resnets_need_are_free_for_timm(settings):
    settings["vision_cfg"] = {"timm_model_name": "vit_small_patch14_dinov2", "image_size": 518}
    assert pmc_clip.ModelConfig.from_dict(settings).vision_cfg.image_size == 518


def test_plain_resnet_takes_odd_widths_and_no_attention_pool(settings):
    settings["vision_cfg"] = {"backbone": "RN50", "width": 7, "image_size": 64}
    assert pmc_clip.ModelConfig.from_dict(settings).vision_cfg.width == 7
    settings["vision_cfg"]["head_width"] = 32
    assert "RN50 has no attention pool: leave it out" in _refusal(settings)


def test_activations_that_configs_may_name_are_those_the_text_tower_has():
    assert set(config_rules.ACTIVATIONS) == set(text_tower.ACTIVATIONS)


def test_missing_field_is_named():
    with pytest.raises(pmc_clip.ModelError, match="'embed_dim' is missing"):
        pmc_clip.ModelConfig.from_dict({"vision_cfg": {}, "text_cfg": {}})


def test_unknown_model_names_the_known():
    with pytest.raises(
        pmc_clip.ModelError, match=r"unknown model 'tinny': give one of RN101_.*, small, tiny"
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
assert not {"torch", "transformers", "torchvision", "timm"} & set(sys.modules)
pmc_clip.load_model_config("RN50_fusion4")
assert "torch" not in sys.modules
for name in pmc_clip.__all__:
    getattr(pmc_clip, name)
assert "torch" in sys.modules
assert not {"transformers", "torchvision", "timm"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
