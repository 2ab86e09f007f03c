"""The image tower that a config asks for: one of the two ResNets, or a timm model by name."""

from torch import nn

from pmc_clip.config import VisionConfig
from pmc_clip.errors import ModelError
from pmc_clip.resnet_tower import ModifiedResNet, ResNet

RESNETS = {"ModifiedRN50": ModifiedResNet, "RN50": ResNet}


def build_image_tower(vision: VisionConfig, embed_dim: int, pretrained: bool | None = None) -> nn.Module:
    """The tower of a config: normalised images [B, 3, S, S] -> features [B, embed_dim] (not normalised).

    pretrained: read the weights that timm has for its model (from its cache, or the hub); None: as
        `vision_cfg.timm_model_pretrained` says; False: random, which is enough before a checkpoint is loaded.
    """
    if vision.timm_model_name is not None:
        # timm, an extra, is imported where a tower of it is built.
        from pmc_clip.timm_tower import TimmTower

        return TimmTower(
            vision, embed_dim, vision.timm_model_pretrained if pretrained is None else pretrained
        )
    if pretrained:
        raise ModelError(
            f"there are no pretrained image weights for vision_cfg.backbone {vision.backbone}: leave "
            "pretrained_image out, load a whole checkpoint, or name a model of timm in "
            "vision_cfg.timm_model_name"
        )
    return RESNETS[vision.backbone](vision, embed_dim)
