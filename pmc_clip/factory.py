"""Build models by name: drawn, or loaded with the image transforms that belong to them.

    model, preprocess_train, preprocess_val = create_model_and_transforms("RN50_fusion4", pretrained="beta")
    model, _, preprocess_val = create_model_and_transforms(pretrained="runs/a/checkpoints/latest")
    model = create_model("tiny")    # random weights, in training mode

The manner is open_clip's.
"""

from pathlib import Path

import torch

from pmc_clip.config import ModelConfig, load_model_config
from pmc_clip.errors import ModelError
from pmc_clip.model import PMCCLIP
from pmc_clip.pretrained import Pretrained, check_config, load_pretrained, read_pretrained
from pmc_clip.transforms import EvalTransform, TrainTransform

PUBLISHED_MODEL = "RN50_fusion4"


def create_model(
    model: str | Path | ModelConfig,
    *,
    mlm: bool = True,
    pretrained_text: bool = True,
    pretrained_image: bool | None = None,
    device: torch.device | str = "cpu",
) -> PMCCLIP:
    """Build a model to train, by name (`list_models()`), path to a JSON file, or config; weights are drawn
    from torch's seed.

    mlm: with masked-token prediction; see PMCCLIP.
    pretrained_text: read the text tower's weights where the config names some (`bert_model_name`); False
        draws them, which is enough before a checkpoint is loaded and needs no network.
    pretrained_image: read the image tower's, where timm has some; None: as its config says.
    """
    built = PMCCLIP(
        load_model_config(model), mlm=mlm, pretrained_text=pretrained_text, pretrained_image=pretrained_image
    )
    return built.to(device)


def create_model_and_transforms(
    model: str | Path | ModelConfig | None = None,
    pretrained: str | Path | None = None,
    *,
    mlm: bool | None = None,
    pretrained_text: bool = True,
    pretrained_image: bool | None = None,
    device: torch.device | str = "cpu",
) -> tuple[PMCCLIP, TrainTransform, EvalTransform]:
    """A model, and what makes pictures ready for it: (model, preprocess_train, preprocess_val).

    The model comes in evaluation mode: with dropout and batch statistics, features would be wrong without a
    word of warning. Call `model.train()` before training it.

    model: name (`list_models()`), path to a JSON file, or config; None: what `pretrained` was trained as, if
        it says so, else the published RN50_fusion4.
    pretrained: a tag (`list_pretrained()`) such as `beta` or `PMC_CLIP:beta`, the path of a checkpoint or of
        an exported folder, or an address (`hf-hub:owner/name`, `s3://bucket/checkpoint.pt`). None or "":
        weights are drawn from torch's seed.
    mlm: with masked-token prediction. None: if the checkpoint has it; True without a checkpoint.
    pretrained_text, pretrained_image: without `pretrained`, read the towers' own weights; see `create_model`.
    Each transform makes of a PIL image [3, S, S] float32, normalised as the model's config says. Its
    tokeniser is `get_tokenizer(model.config)`.
    """
    if not pretrained:
        built = create_model(
            model or PUBLISHED_MODEL,
            mlm=mlm is None or mlm,
            pretrained_text=pretrained_text,
            pretrained_image=pretrained_image,
        )
    else:
        if pretrained_image:
            raise ModelError(f"'{pretrained}' holds the image tower, too: leave out pretrained_image")
        found = read_pretrained(pretrained)
        built = create_model(
            _agreed_config(model, found),
            mlm=_agreed_mlm(mlm, found),
            pretrained_text=False,
            pretrained_image=False,
        )
        load_pretrained(built, found)
    vision = built.config.vision_cfg
    return (
        built.to(device).eval(),
        TrainTransform(vision.image_size, vision.mean, vision.std),
        EvalTransform(vision.image_size, vision.mean, vision.std),
    )


def _agreed_config(model: str | Path | ModelConfig | None, found: Pretrained) -> ModelConfig:
    """The config to build; ModelError names the fields in which the caller and the checkpoint contradict."""
    if model is None and found.config is not None:
        return found.config
    config = load_model_config(model or PUBLISHED_MODEL)
    check_config(config, found)
    return config


def _agreed_mlm(mlm: bool | None, found: Pretrained) -> bool:
    if mlm and not found.mlm:
        raise ModelError(
            f"{found.source}: has no weights for masked-token prediction: leave out mlm, or give mlm=False"
        )
    return found.mlm if mlm is None else mlm
