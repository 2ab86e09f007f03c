"""open_clip's layout: a folder that its `local-dir:` and `hf-hub:` names load.

    save_open_clip(model, "exported")
    open_clip.create_model_and_transforms("local-dir:exported")

It computes the same features. The fusion transformer has no place there and stays behind.
"""

from pathlib import Path

import torch

from pmc_clip.export.card import open_clip_card
from pmc_clip.export.files import (
    CARD,
    CONFIG,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    new_folder,
    write_json,
    write_tensors,
    write_tokenizer,
)
from pmc_clip.export.open_clip_towers import bert_config, text_config, vision_config
from pmc_clip.model import PMCCLIP
from pmc_clip.tokenizer import Tokenizer, get_tokenizer


def save_open_clip(
    model: PMCCLIP, folder: str | Path, tokenizer: Tokenizer | None = None, *, overwrite: bool = False
) -> None:
    """Write the towers as open_clip's CustomTextCLIP, with BERT's config and the tokeniser beside them.

    open_clip finds these two by a name, which is the folder's path: a folder that is moved wants its new path
    as `hf_model_name` and `hf_tokenizer_name` in open_clip_config.json. (`push_to_hub` puts the repository
    there.)

    tokenizer: the model's; None: what its config names.
    overwrite: replace an export that lies there.
    Raises ModelError where open_clip would compute something else or something is in the way, and OSError
    where the disk refuses.
    """
    place = Path(folder).resolve()
    vision = model.config.vision_cfg
    config = {
        "model_cfg": {
            "embed_dim": model.config.embed_dim,
            "custom_text": True,
            "init_logit_bias": model.config.init_logit_bias,
            "vision_cfg": vision_config(model),
            "text_cfg": text_config(model, str(place)),
        },
        "preprocess_cfg": {
            "mean": vision.mean,
            "std": vision.std,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    with new_folder(folder, overwrite=overwrite) as draft:
        write_tokenizer(tokenizer or get_tokenizer(model.config), draft)
        write_tensors(draft / OPEN_CLIP_WEIGHTS, _state_dict(model))
        write_json(draft / CONFIG, bert_config(model))
        write_json(draft / OPEN_CLIP_CONFIG, config)
        (draft / CARD).write_text(open_clip_card(model, place.name), encoding="utf-8")


def _state_dict(model: PMCCLIP) -> dict[str, torch.Tensor]:
    """The towers' tensors under the names that open_clip's CustomTextCLIP has for them."""
    tower = "text_encoder."
    state = {"text.proj.weight": model.text_projection.T}
    for name, tensor in model.state_dict().items():
        if name.startswith("visual.") or name in ("logit_scale", "logit_bias"):
            state[name] = tensor
        elif name.startswith(tower):
            state[f"text.transformer.{name.removeprefix(tower)}"] = tensor
    return state
