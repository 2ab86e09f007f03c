"""The model that a run trains: its config, as the flags change it, and the weights that it begins with."""

import math
from dataclasses import dataclass, replace

from pipeline.checkpoint import Checkpoint
from pipeline.checkpointing.places import follow_latest, is_in_parts
from pipeline.checks import check_at_least, flag_name
from pipeline.training.objective import MatchLossName
from pmc_clip import PMCCLIP, ModelConfig
from pmc_clip.locking import lock_tower
from pmc_clip.pretrained import Pretrained, load_pretrained, read_pretrained
from shards import UsageError

# Where the sigmoid loss begins: the bias says that most pairs are negatives (Zhai et al. 2023, "Sigmoid Loss
# for Language Image Pre-Training").
SIGLIP_LOG_SCALE, SIGLIP_BIAS = math.log(10), -10.0


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model a run trains, and from which weights."""

    model: str = "RN50_fusion4"
    """Name of a model config, or the path of one (JSON)."""
    pretrained: str | None = None
    """Weights to start from: a tag (beta, PMC_CLIP:beta), a path, or an address such as hf-hub:owner/name.
    A resumed run goes on from its checkpoint instead.
    """
    pretrained_image: bool = False
    """Start the image tower from the weights that timm has for it, in a model whose image tower is timm's."""
    lock_image: bool = False
    """Keep the image tower as it is: no gradients, no moving statistics."""
    lock_image_unlocked_groups: int = 0
    """Parts at the image tower's end that train all the same, with --lock-image: of a ResNet the pool, then
    its stages from the last one.
    """
    lock_text: bool = False
    """Keep the text tower as it is: no gradients, no dropout. The projection of its features still trains."""
    lock_text_unlocked_layers: int = 0
    """Layers at the text tower's end that train all the same, with --lock-text."""
    mask_padding: bool = False
    """Keep padding out of the text tower, which makes the model another; captions are padded to the batch's
    longest. Part of the model, stored in its checkpoints; without it, as the model config says.
    """

    def check_model(self) -> None:
        """Raise UsageError where the flags cannot be, or contradict each other."""
        check_at_least(self, lock_image_unlocked_groups=0, lock_text_unlocked_layers=0)
        for lock, unlocked in (
            ("lock_image", "lock_image_unlocked_groups"),
            ("lock_text", "lock_text_unlocked_layers"),
        ):
            if getattr(self, unlocked) and not getattr(self, lock):
                raise UsageError(f"{flag_name(unlocked)} says what {flag_name(lock)} leaves free: give both")
        if self.pretrained and self.pretrained_image:
            raise UsageError(
                f"--pretrained {self.pretrained} holds the image tower, too: leave out --pretrained-image"
            )

    def check_locks(self, config: ModelConfig, first_weights: str | None) -> None:
        """Raise UsageError where a tower of this model would be locked at random weights."""
        if first_weights:
            return
        vision = config.vision_cfg
        if self.lock_image and not (self.pretrained_image or vision.timm_model_pretrained):
            raise UsageError(
                "--lock-image would keep the image tower at random weights: give --pretrained, or "
                "--pretrained-image with a model whose image tower is timm's"
            )
        if self.lock_text and not config.text_cfg.bert_model_name:
            raise UsageError(
                "--lock-text would keep the text tower at random weights: give --pretrained, or a model "
                "whose config names a pretrained BERT (bert_model_name)"
            )

    def lock(self, model: PMCCLIP) -> None:
        """Lock what the flags say."""
        if self.lock_image:
            lock_tower(model, "visual", self.lock_image_unlocked_groups)
        if self.lock_text:
            lock_tower(model, "text_encoder", self.lock_text_unlocked_layers)


def config_to_train(config: ModelConfig, loss: MatchLossName, *, mask_padding: bool) -> ModelConfig:
    """The model config with what the flags --loss and --mask-padding ask of it."""
    if mask_padding:
        config = replace(config, text_cfg=replace(config.text_cfg, mask_padding=True))
    if loss == "siglip" and config.init_logit_bias is None:
        return replace(config, init_logit_scale=SIGLIP_LOG_SCALE, init_logit_bias=SIGLIP_BIAS)
    if loss == "contrastive" and config.init_logit_bias is not None:
        raise UsageError(
            "the model config has an init_logit_bias, which --loss contrastive would never train: give "
            "--loss siglip, or leave the field out of the config"
        )
    return config


def begin_with_pretrained(model: PMCCLIP, name: str) -> str:
    """Load the weights that --pretrained names; returns what was done, for a person to read.

    The factor and the bias on similarities belong to one kind of loss: weights that were trained with the
    other kind leave both where the model's config has them begin.
    """
    pretrained = _read_weights(name)
    told = f"starting from {pretrained.source} ({pretrained.layout} layout)"
    given, own = pretrained.state_dict, model.state_dict()
    if ("logit_bias" in given) != ("logit_bias" in own):
        kept = {key: tensor for key, tensor in given.items() if key not in ("logit_scale", "logit_bias")}
        begun = {key: own[key] for key in ("logit_scale", "logit_bias") if key in own}
        pretrained = replace(pretrained, state_dict=kept | begun)
        told += "; it was trained with another --loss, so logit_scale and logit_bias begin anew"
    load_pretrained(model, pretrained)
    ours = model.config.text_cfg.mask_padding
    if pretrained.config and pretrained.config.text_cfg.mask_padding != ours:
        told += f"; it was trained with mask_padding {not ours}, and goes on with {ours}"
    return told


def _read_weights(name: str) -> Pretrained:
    address = follow_latest(name)
    if not is_in_parts(address):
        return read_pretrained(name)
    run = Checkpoint.load(address, outline=True)
    return Pretrained(run.weights(), ModelConfig.from_dict(run.model, address), "own", name)
