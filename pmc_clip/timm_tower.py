"""Image towers of the timm package, by name: any of its architectures, and a projection of its features.

    "vision_cfg": {"image_size": 224, "timm_model_name": "vit_base_patch16_224"}

Parameter names (trunk.*, head.proj.*, head.mlp.*, head.pool.*) are those of the published code, which
open_clip's adapter shares.
"""

import difflib
from collections import OrderedDict
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pmc_clip.config import VisionConfig
from pmc_clip.config_rules import ATTENTION_POOLS
from pmc_clip.errors import ModelError


class TimmTower(nn.Module):
    """A timm model and a projection: normalised images [B, 3, S, S] -> features [B, embed_dim].

    pretrained: read the weights that timm has for the model; it takes a download once.
    """

    def __init__(self, vision: VisionConfig, embed_dim: int, pretrained: bool = False):
        super().__init__()
        timm = _import_timm(vision)
        self.trunk = _create_trunk(timm, vision, pretrained)
        _set_pool(self.trunk, vision)
        self.head = _build_head(timm, vision, _features(self.trunk, vision), embed_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] float -> [B, embed_dim]."""
        return self.head(self.trunk(images))


def _import_timm(vision: VisionConfig) -> ModuleType:
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ModelError(
            f"vision_cfg.timm_model_name '{vision.timm_model_name}' needs the package timm: "
            f"pip install 'pmc-clip-stream[timm]' ({error})"
        ) from error
    return timm


def _create_trunk(timm: ModuleType, vision: VisionConfig, pretrained: bool) -> nn.Module:
    """The model that the config names, as timm builds it for images of this size."""
    name, size = vision.timm_model_name, vision.image_size
    assert name is not None
    # A name with a scheme (hf-hub:owner/name, local-dir:folder) is for timm to resolve.
    if ":" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4)
        raise ModelError(
            f"timm {timm.__version__} has no model '{name}' (vision_cfg.timm_model_name): "
            + (f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names those it has")
        )
    try:
        try:
            trunk = timm.create_model(name, pretrained=pretrained, img_size=size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            trunk = timm.create_model(name, pretrained=pretrained)  # convolutional: reads any size
    except Exception as error:  # each of timm's models has its own
        remedy = (
            "connect to the network once to cache its weights, or build it without (pretrained_image=False)"
            if pretrained
            else "change vision_cfg"
        )
        raise ModelError(
            f"timm cannot build '{name}' for {size} px images: {remedy}. timm said: {error}"
        ) from error
    patch, _ = timm.layers.to_2tuple(getattr(getattr(trunk, "patch_embed", None), "patch_size", 1))
    if size % patch:
        raise ModelError(
            f"vision_cfg.image_size is {size}: timm's '{name}' reads patches of {patch} px and would leave "
            "out the rest; make it a multiple"
        )
    return trunk


def _set_pool(trunk: Any, vision: VisionConfig) -> None:
    """Take the classifier off and let the model pool as the config says."""
    pool = vision.timm_pool
    try:
        if pool == "":
            trunk.reset_classifier(0)
        else:
            trunk.reset_classifier(0, global_pool="" if pool in ATTENTION_POOLS else pool)
    except Exception as error:
        raise ModelError(
            f"timm's '{vision.timm_model_name}' cannot pool as vision_cfg.timm_pool '{pool}' asks: choose "
            f"another, or '' for the model's own way. timm said: {error!r}"
        ) from error


@torch.no_grad()
def _features(trunk: nn.Module, vision: VisionConfig) -> torch.Size:
    """Shape of one image's features: [1, C], or [1, C, H, W] for an attention pool.

    It is found by making some, which shows that the model reads images of this size, too.
    """
    size = vision.image_size
    try:
        shape = trunk.eval()(torch.zeros(1, 3, size, size)).shape
    except Exception as error:
        raise ModelError(
            f"timm's '{vision.timm_model_name}' does not read {size} px images: change "
            f"vision_cfg.image_size. timm said: {error}"
        ) from error
    trunk.train()
    wanted = 4 if vision.timm_pool in ATTENTION_POOLS else 2
    if len(shape) != wanted or (wanted == 4 and shape[1] != trunk.num_features):
        want = "a feature map [B, C, H, W]" if wanted == 4 else "features [B, C]"
        raise ModelError(
            f"vision_cfg.timm_pool '{vision.timm_pool}' needs {want}, and timm's '{vision.timm_model_name}' "
            f"gives {['B', *shape[1:]]}: choose another timm_pool"
        )
    return shape


def _build_head(
    timm: ModuleType, vision: VisionConfig, features: torch.Size, embed_dim: int
) -> nn.Sequential:
    width = features[1]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if vision.timm_pool in ATTENTION_POOLS:
        if width % 64:
            raise ModelError(
                f"vision_cfg.timm_pool '{vision.timm_pool}' has heads of 64 channels, which do not divide "
                f"the {width} of timm's '{vision.timm_model_name}': choose another timm_pool"
            )
        if vision.timm_pool == "abs_attn":
            pool = timm.layers.AttentionPool2d(width, feat_size=tuple(features[2:]), out_features=embed_dim)
        else:
            pool = timm.layers.RotAttentionPool2d(width, out_features=embed_dim)
        layers["pool"], width = pool, embed_dim
    if vision.timm_proj == "linear":
        layers["proj"] = nn.Linear(width, embed_dim)
    elif vision.timm_proj == "mlp":
        layers["mlp"] = timm.layers.Mlp(width, 2 * embed_dim, embed_dim)
    elif width != embed_dim:
        raise ModelError(
            f"vision_cfg.timm_proj is {vision.timm_proj!r}, but timm's '{vision.timm_model_name}' gives "
            f"{width} features and embed_dim is {embed_dim}: choose timm_proj 'linear', or make them equal"
        )
    return nn.Sequential(layers)
