"""What a model config may say: ranges of its fields, and fields that must agree. Pure; needs no torch."""

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pmc_clip.errors import ModelError

if TYPE_CHECKING:
    from pmc_clip.config import BertArchitecture, ModelConfig, TextConfig, VisionConfig

BACKBONES = ("ModifiedRN50", "RN50")
POOLS = ("cls", "pooler")
ACTIVATIONS = ("gelu", "gelu_new", "relu")
ATTENTION_POOLS = ("abs_attn", "rot_attn")
PROJECTIONS = ("linear", "mlp", "none")

Rule = tuple[bool, str]
"""Whether it holds, and the message where it does not."""


def check(config: "ModelConfig") -> None:
    """Raise ModelError for the first field that is out of range or contradicts another."""
    for rules in (_sizes(config), _whole(config), _vision(config.vision_cfg), _text(config.text_cfg)):
        for holds, message in rules:
            if not holds:
                raise ModelError(message)


def check_pretrained_bert(text: "TextConfig", found: "BertArchitecture") -> None:
    """Raise ModelError where the BERT that `text.bert_model_name` names is not what the config says, or not
    what this package computes.
    """
    told = text.bert and {
        name: value for name, value in dataclasses.asdict(text.bert).items() if value is not None
    }
    for name, value in (told or {}).items():
        if getattr(found, name) != value:
            raise ModelError(
                f"text_cfg.bert.{name} is {value}, but '{text.bert_model_name}' has {getattr(found, name)}: "
                "make them equal, or name another BERT"
            )
    for holds, message in _bert(text, found):
        if not holds:
            raise ModelError(f"'{text.bert_model_name}' does not fit the config: {message}")


def _sizes(config: "ModelConfig") -> Iterator[Rule]:
    vision, text = config.vision_cfg, config.text_cfg
    sizes = {"embed_dim": config.embed_dim}
    sizes |= {f"vision_cfg.{name}": getattr(vision, name) for name in ("image_size", "width", "head_width")}
    sizes |= {f"vision_cfg.layers[{index}]": blocks for index, blocks in enumerate(vision.layers)}
    sizes |= {
        f"text_cfg.{name}": getattr(text, name)
        for name in ("context_length", "vocab_size", "width", "heads", "layers", "fusion_layers")
    }
    if text.bert is not None:
        sizes |= {
            f"text_cfg.bert.{name}": getattr(text.bert, name)
            for name in ("num_attention_heads", "intermediate_size", "type_vocab_size")
        }
    for name, value in sizes.items():
        yield value >= 1, f"{name} is {value}: it must be at least 1"


def _whole(config: "ModelConfig") -> Iterator[Rule]:
    text = config.text_cfg
    yield (
        config.clip_model == "PMC_CLIP",
        f"clip_model is {config.clip_model!r}: 'PMC_CLIP' is the only one",
    )
    for name in ("init_logit_scale", "init_logit_bias"):
        value = getattr(config, name)
        yield value is None or math.isfinite(value), f"{name} is {value}: make it a finite number"
    yield (
        text.width == config.embed_dim,
        f"embed_dim is {config.embed_dim} and text_cfg.width is {text.width}: make them equal, the fusion "
        "transformer reads image features beside text states",
    )


def _vision(vision: "VisionConfig") -> Iterator[Rule]:
    yield (
        all(0 <= value <= 1 for value in vision.mean),
        f"vision_cfg.mean is {list(vision.mean)}: give means of pixel values from 0 to 1",
    )
    yield (
        all(0 < value <= 1 for value in vision.std),
        f"vision_cfg.std is {list(vision.std)}: give deviations above 0, of pixel values from 0 to 1",
    )
    yield from _resnet(vision) if vision.timm_model_name is None else _timm(vision)


def _resnet(vision: "VisionConfig") -> Iterator[Rule]:
    yield (
        vision.backbone in BACKBONES,
        f"vision_cfg.backbone is {vision.backbone!r}: choose one of {', '.join(BACKBONES)}, or name a model "
        "of timm in vision_cfg.timm_model_name",
    )
    for name in ("timm_model_pretrained", "timm_pool", "timm_proj"):
        yield (
            _is_default(vision, name),
            f"vision_cfg.{name} is {getattr(vision, name)!r} without a vision_cfg.timm_model_name: give that "
            "or leave this out",
        )
    yield (
        vision.patch_size is None,
        f"vision_cfg.patch_size is {vision.patch_size}: a ResNet has no patches; set it to null",
    )
    yield (
        vision.image_size % 32 == 0,
        f"vision_cfg.image_size is {vision.image_size}: the tower halves it five times, so make it a "
        "multiple of 32",
    )
    if vision.backbone == "RN50":
        yield (
            _is_default(vision, "head_width"),
            f"vision_cfg.head_width is {vision.head_width}, but RN50 has no attention pool: leave it out",
        )
        return
    yield vision.width % 2 == 0, f"vision_cfg.width is {vision.width}: the stem halves it, so make it even"
    yield (
        vision.width * 32 % vision.heads == 0,
        f"vision_cfg.head_width is {vision.head_width}: its {vision.heads} heads do not divide the "
        f"{vision.width * 32} channels (width * 32): change one of them",
    )


def _timm(vision: "VisionConfig") -> Iterator[Rule]:
    for name in ("backbone", "layers", "width", "head_width", "patch_size"):
        yield (
            _is_default(vision, name),
            f"vision_cfg.{name} is {getattr(vision, name)!r} beside vision_cfg.timm_model_name "
            f"'{vision.timm_model_name}', which has a shape of its own: leave it out",
        )
    pools_itself = vision.timm_pool in ATTENTION_POOLS
    yield (
        vision.timm_proj in PROJECTIONS or (vision.timm_proj == "" and pools_itself),
        f"vision_cfg.timm_proj is {vision.timm_proj!r}: choose one of {', '.join(PROJECTIONS)}",
    )


def _is_default(vision: "VisionConfig", name: str) -> bool:
    (field,) = (field for field in dataclasses.fields(vision) if field.name == name)
    return getattr(vision, name) == field.default


def _text(text: "TextConfig") -> Iterator[Rule]:
    yield text.pool in POOLS, f"text_cfg.pool is {text.pool!r}: choose one of {', '.join(POOLS)}"
    yield (
        text.context_length >= 3,
        f"text_cfg.context_length is {text.context_length}: [CLS], a piece and [SEP] need 3",
    )
    yield (
        text.width % text.heads == 0,
        f"text_cfg.heads is {text.heads} which does not divide width {text.width}: change one",
    )
    if text.bert is not None:
        yield from _bert(text, text.bert)


def _bert(text: "TextConfig", bert: "BertArchitecture") -> Iterator[Rule]:
    twins = {"vocab_size": "vocab_size", "hidden_size": "width", "num_hidden_layers": "layers"}
    for name, twin in twins.items():
        yield (
            getattr(bert, name) in (None, getattr(text, twin)),
            f"text_cfg.bert.{name} is {getattr(bert, name)} and text_cfg.{twin} is {getattr(text, twin)}: "
            f"make them equal, or leave out bert.{name}",
        )
    yield (
        text.width % bert.num_attention_heads == 0,
        f"text_cfg.bert.num_attention_heads is {bert.num_attention_heads}, which does not divide "
        f"text_cfg.width {text.width}: change one",
    )
    yield (
        bert.max_position_embeddings >= text.context_length,
        f"text_cfg.bert.max_position_embeddings is {bert.max_position_embeddings}: raise it to "
        f"text_cfg.context_length {text.context_length} or more",
    )
    yield (
        bert.pad_token_id == 0,
        f"text_cfg.bert.pad_token_id is {bert.pad_token_id}: make it 0, which the labels use, too",
    )
    yield (
        bert.hidden_act in ACTIVATIONS,
        f"text_cfg.bert.hidden_act is {bert.hidden_act!r}: choose one of {', '.join(ACTIVATIONS)}",
    )
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        share = getattr(bert, name)
        yield 0 <= share < 1, f"text_cfg.bert.{name} is {share}: give a share from 0 to below 1"
    for name in ("initializer_range", "layer_norm_eps"):
        value = getattr(bert, name)
        yield value > 0 and math.isfinite(value), f"text_cfg.bert.{name} is {value}: make it above 0"
