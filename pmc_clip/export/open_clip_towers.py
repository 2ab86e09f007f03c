"""What open_clip's towers are told to become a model's: its config, by part. ModelError where they cannot.

open_clip knows a ModifiedResNet, timm's models and transformers' BERT with a linear projection.
"""

import dataclasses
from typing import Any

from torch import nn

from pmc_clip.config_rules import ATTENTION_POOLS
from pmc_clip.errors import ModelError
from pmc_clip.model import PMCCLIP

_POOLERS = {"cls": "cls_last_hidden_state_pooler", "pooler": "cls_pooler"}


def vision_config(model: PMCCLIP) -> dict[str, Any]:
    """open_clip's vision_cfg."""
    vision = model.config.vision_cfg
    if vision.timm_model_name is not None:
        return _timm_config(model)
    if vision.backbone != "ModifiedRN50":
        raise _refusal(f"it has no image tower like vision_cfg.backbone '{vision.backbone}'")
    return {
        "image_size": vision.image_size,
        "layers": list(vision.layers),
        "width": vision.width,
        # Its pool has width * 32 // head_width heads, and ours at least one.
        "head_width": vision.width * 32 // vision.heads,
    }


def text_config(model: PMCCLIP, name: str) -> dict[str, Any]:
    """open_clip's text_cfg. name: where transformers finds BERT's config and the tokeniser."""
    text = model.config.text_cfg
    if not text.mask_padding:
        raise _refusal(
            "it keeps padding out of attention, and this model was trained to read it (text_cfg.mask_padding "
            "is false)"
        )
    return {
        "hf_model_name": name,
        "hf_tokenizer_name": name,
        "hf_proj_type": "linear",
        "hf_pooler_type": _POOLERS[text.pool],
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
    }


def bert_config(model: PMCCLIP) -> dict[str, Any]:
    """transformers' config.json of the text tower."""
    text = model.config.text_cfg
    return {
        **dataclasses.asdict(model.text_encoder.shape),
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
    }


def _timm_config(model: PMCCLIP) -> dict[str, Any]:
    vision = model.config.vision_cfg
    name, size = vision.timm_model_name, vision.image_size
    trunk: Any = model.visual.trunk
    head: Any = model.visual.head
    native = trunk.default_cfg["input_size"][-1]
    any_size = vision.timm_pool != "abs_attn" and not trunk.default_cfg.get("fixed_input_size")
    projection = next((layer for layer in head.modules() if isinstance(layer, nn.Linear)), None)
    rules = [
        (
            any_size or size == native,
            f"it builds timm's '{name}' for {native} px, and vision_cfg.image_size is {size}",
        ),
        (
            vision.timm_pool != "" or vision.timm_proj != "none",
            "it takes timm_pool '' with timm_proj 'none' for no pooling at all",
        ),
        (
            vision.timm_pool in ATTENTION_POOLS
            or projection is None
            or projection.in_features == trunk.num_features,
            f"it does not know how many features timm's '{name}' has before its classifier",
        ),
    ]
    for holds, reason in rules:
        if not holds:
            raise _refusal(reason)
    return {
        "image_size": size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": vision.timm_pool,
        "timm_proj": vision.timm_proj,
        "timm_proj_bias": True,
    }


def _refusal(reason: str) -> ModelError:
    return ModelError(
        f"open_clip cannot compute this model: {reason}. Export it in this package's own layout"
    )
