"""The PMC-CLIP model: image tower, text tower, and the fusion transformer that predicts masked words.

    model = create_model("tiny")
    output = model(images, tokens, mlm_labels)      # training: ModelOutput
    features = model.encode_image(images, normalize=True)

From Lin et al. 2023, "PMC-CLIP: Contrastive Language-Image Pre-training using Biomedical Documents".
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from pmc_clip.config import ModelConfig, load_model_config
from pmc_clip.errors import ModelError
from pmc_clip.fusion import FusionTransformer
from pmc_clip.image_tower import ModifiedResNet
from pmc_clip.text_tower import build_text_tower

PAD_ID = 0  # of the vocabulary; the label that means "not scored" is 0, too


class ModelOutput(NamedTuple):
    """What one forward pass gives the losses."""

    image_features: torch.Tensor
    """[B, embed_dim], of length 1."""
    text_features: torch.Tensor
    """[B, embed_dim], of length 1."""
    logit_scale: torch.Tensor
    """Scalar: what cosine similarities are multiplied by (exp of the learned parameter)."""
    mlm_loss: torch.Tensor | None
    """Scalar: mean cross entropy over labelled positions, 0 where there is none; None without labels."""


class PMCCLIP(nn.Module):
    """Image and text towers into one space, and masked-token prediction from both.

    With `mlm=False` the parts that only masked-token prediction trains (fusion_module, img_special_token,
    mlm_projection) are left out, so that every parameter receives a gradient from the contrastive loss alone
    and DistributedDataParallel has nothing to wait for.
    """

    def __init__(self, config: ModelConfig, *, mlm: bool = True, pretrained_text: bool = True):
        super().__init__()
        text = config.text_cfg
        self.config = config
        self.mlm = mlm
        self.visual = ModifiedResNet(config.vision_cfg, config.embed_dim)
        self.text_encoder = build_text_tower(text, pretrained_text)
        std = text.width**-0.5
        self.text_projection = nn.Parameter(torch.empty(text.width, config.embed_dim).normal_(std=std))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if mlm:
            self.img_special_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
            self.fusion_module = FusionTransformer(text.width, text.fusion_layers, text.heads)
            self.mlm_projection = nn.Parameter(torch.empty(text.width, text.vocab_size).normal_(std=std))

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, mlm_labels: torch.Tensor | None = None
    ) -> ModelOutput:
        """One pass for both losses.

        images: [B, 3, S, S] float, normalised (`pmc_clip.normalize`).
        tokens: [B, T] int64, masked where `mlm_labels` is given (`pmc_clip.mask_tokens`).
        mlm_labels: [B, T] int64, true ids where masked, 0 where not scored; None: no masked-token prediction.
        """
        image_features = self.encode_image(images, normalize=True)
        hidden = self._hidden(tokens)
        text_features = F.normalize(hidden[:, 0] @ self.text_projection, dim=-1)
        mlm_loss = None
        if mlm_labels is not None:
            mlm_loss = self._masked_token_loss(self._fuse(tokens, hidden, image_features), mlm_labels)
        return ModelOutput(image_features, text_features, self.logit_scale.exp(), mlm_loss)

    def encode_image(self, images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """[B, 3, S, S] float, normalised -> [B, embed_dim]; of length 1 with `normalize`."""
        size = self.config.vision_cfg.image_size
        if images.shape[1:] != (3, size, size):
            raise ModelError(
                f"images are {list(images.shape)}, this model reads [B, 3, {size}, {size}]: resize them"
            )
        features = self.visual(images)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """[B, T] int64 -> [B, embed_dim], from the state at [CLS]; of length 1 with `normalize`."""
        features = self._hidden(tokens)[:, 0] @ self.text_projection
        return F.normalize(features, dim=-1) if normalize else features

    def fuse(self, tokens: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """Hidden states of the tokens after they saw the image.

        [B, T] int64 and [B, embed_dim] (of any length) -> [B, T, width]; times `mlm_projection` they score
        the vocabulary at each position.
        """
        return self._fuse(tokens, self._hidden(tokens), F.normalize(image_features, dim=-1))

    def _hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, T] int64 -> the text tower's last hidden states [B, T, width]."""
        text = self.config.text_cfg
        length = tokens.shape[-1]
        if length != text.context_length and not (text.mask_padding and length < text.context_length):
            most = "at most " if text.mask_padding else ""
            raise ModelError(
                f"tokens are {list(tokens.shape)}, this model reads {most}{text.context_length} per caption, "
                "padding included: use its tokeniser's output"
            )
        return self.text_encoder(input_ids=tokens, attention_mask=self._attend(tokens)).last_hidden_state

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """[B, T] bool, the positions that attention may look at; None: all, padding too."""
        return tokens != PAD_ID if self.config.text_cfg.mask_padding else None

    def _fuse(self, tokens: torch.Tensor, hidden: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        if not self.mlm:
            raise ModelError("a model built with mlm=False has no fusion transformer: build it with mlm=True")
        batch, length, _ = hidden.shape
        marker = self.img_special_token.to(hidden.dtype).expand(batch, -1, -1)
        image = image_features.to(hidden.dtype)[:, None]
        attend = self._attend(tokens)
        if attend is not None:
            attend = F.pad(attend, (0, 2), value=True)[:, None, None]
        return self.fusion_module(torch.cat([hidden, marker, image], dim=1), attend)[:, :length]

    def _masked_token_loss(self, fused: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy at the labelled positions; only these, a few in a hundred, are scored at all."""
        labels = labels.flatten()
        positions = labels.nonzero().squeeze(1)
        labelled = fused.flatten(0, 1).index_select(0, positions)
        scores = labelled @ self.mlm_projection  # [labelled, vocabulary]
        total = F.cross_entropy(scores.float(), labels.index_select(0, positions), reduction="sum")
        return total / max(1, len(positions))


def create_model(
    model: str | Path | ModelConfig,
    *,
    mlm: bool = True,
    pretrained_text: bool = True,
    device: torch.device | str = "cpu",
) -> PMCCLIP:
    """Build a model by name (`list_models()`), path to a JSON file, or config; drawn from torch's seed.

    mlm: with masked-token prediction; see PMCCLIP.
    pretrained_text: read the text tower's weights where the config names some (`bert_model_name`); False
        draws them, which is enough before a checkpoint is loaded and needs no network.
    """
    return PMCCLIP(load_model_config(model), mlm=mlm, pretrained_text=pretrained_text).to(device)
