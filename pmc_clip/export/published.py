"""The published layout: the checkpoint file that the published code writes and, strictly, reads.

The published model has tensors that take part in no computation; the model here does without them, the
published code refuses a file without them. They get the values that it starts them from:

- `positional_embedding`: N(0, 0.01²); `ln_final`: ones and zeros;
- `text_encoder.pooler`, BERT's: N(0, initializer_range²) and zeros;
- `text_encoder.embeddings.position_ids`: 0, 1, 2 …, which transformers keeps beside the weights up to version
  4.30. The published code asks for 4.21 at most; with a newer one, take this tensor out of the file;
- the fusion transformer, if the model does without masked-token prediction: there, it is always built.
"""

from pathlib import Path

import torch

from pmc_clip.errors import ModelError
from pmc_clip.export.files import new_file
from pmc_clip.fusion import FusionTransformer
from pmc_clip.model import PMCCLIP

_SEED = 0  # one model gives one file
_PLAIN_WIDTH = 64  # the one that the head of the published plain ResNet fits


def save_published(
    model: PMCCLIP, path: str | Path, *, name: str = "pmc_clip", epoch: int = 0, overwrite: bool = False
) -> None:
    """Write `{"epoch", "name", "state_dict"}`, keys prefixed `module.`, for the published code.

    A model without masked-token prediction has no `mlm_projection` there, as in the published code without
    `--mlm`. Raises ModelError where that code would compute something else or something is in the way, and
    OSError where the disk refuses.
    """
    state = {
        f"module.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in published_state_dict(model).items()
    }
    with new_file(path, overwrite=overwrite) as draft:
        try:
            torch.save({"epoch": epoch, "name": name, "state_dict": state}, draft)
        except RuntimeError as error:  # what torch's writer makes of a full disk
            raise OSError(str(error).splitlines()[0]) from error


def published_state_dict(model: PMCCLIP) -> dict[str, torch.Tensor]:
    """The model's tensors, and those that the published code has besides."""
    _check(model)
    return _unused(model) | model.state_dict()


def _unused(model: PMCCLIP) -> dict[str, torch.Tensor]:
    """What only the published model has."""
    text, shape = model.config.text_cfg, model.text_encoder.shape
    width = text.width
    tensors = {
        "ln_final.weight": torch.ones(width),
        "ln_final.bias": torch.zeros(width),
        "text_encoder.embeddings.position_ids": torch.arange(shape.max_position_embeddings)[None],
        "text_encoder.pooler.dense.bias": torch.zeros(width),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        tensors["positional_embedding"] = torch.empty(text.context_length, width).normal_(std=0.01)
        tensors["text_encoder.pooler.dense.weight"] = torch.empty(width, width).normal_(
            std=shape.initializer_range
        )
        if not model.mlm:
            fusion = FusionTransformer(width, text.fusion_layers, text.heads)
            tensors["img_special_token"] = torch.zeros(1, 1, model.config.embed_dim)
            tensors |= {f"fusion_module.{name}": tensor for name, tensor in fusion.state_dict().items()}
    return tensors


def _check(model: PMCCLIP) -> None:
    """Raise ModelError for what the published code has no place for, or computes otherwise."""
    config = model.config
    vision, text = config.vision_cfg, config.text_cfg
    rules = [
        (
            vision.timm_model_name is None,
            f"its training does not run with timm's towers (vision_cfg.timm_model_name "
            f"'{vision.timm_model_name}')",
        ),
        (
            vision.backbone != "RN50" or vision.width == _PLAIN_WIDTH,
            f"its plain ResNet has width {_PLAIN_WIDTH}, and vision_cfg.width is {vision.width}",
        ),
        (not text.mask_padding, "it reads padding, which text_cfg.mask_padding keeps out"),
        (text.pool == "cls", f"its text feature is the state at [CLS], and text_cfg.pool is '{text.pool}'"),
        (config.init_logit_bias is None, "it has no logit bias"),
    ]
    for holds, reason in rules:
        if not holds:
            raise ModelError(
                f"the published code cannot compute this model: {reason}. Export it in this package's own "
                "layout"
            )
