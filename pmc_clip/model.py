"""The PMC-CLIP model: image tower, text tower, and the fusion transformer that predicts masked words.

    model = PMCCLIP(config)                         # or by name: pmc_clip.create_model("tiny")
    output = model(images, tokens, mlm_labels)      # training: ModelOutput
    features = model.encode_image(images, normalize=True)

From Lin et al. 2023, "PMC-CLIP: Contrastive Language-Image Pre-training using Biomedical Documents".
"""

from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import nn

from pmc_clip.config import ModelConfig
from pmc_clip.errors import ModelError
from pmc_clip.fusion import FusionTransformer
from pmc_clip.image_tower import build_image_tower
from pmc_clip.text_layout import Spread, TextLayout
from pmc_clip.text_tower import build_text_tower
from pmc_clip.transforms import normalize as normalize_pixels


class ModelOutput(NamedTuple):
    """What one forward pass gives the losses."""

    image_features: torch.Tensor
    """[B, embed_dim], of length 1."""
    text_features: torch.Tensor
    """[B, embed_dim], of length 1."""
    logit_scale: torch.Tensor
    """Scalar: what cosine similarities are multiplied by (exp of the learned parameter)."""
    logit_bias: torch.Tensor | None
    """Scalar: what is added to them; None in models without one."""
    mlm_loss: torch.Tensor | None
    """Scalar: mean cross entropy over labelled positions, 0 where there is none; None without labels."""


class PMCCLIP(nn.Module):
    """Image and text towers into one space, and masked-token prediction from both.

    With `mlm=False` the parts that only masked-token prediction trains (fusion_module, img_special_token,
    mlm_projection) are left out, so that every parameter receives a gradient from the contrastive loss alone
    and DistributedDataParallel has nothing to wait for.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        mlm: bool = True,
        pretrained_text: bool = True,
        pretrained_image: bool | None = None,
    ):
        super().__init__()
        text = config.text_cfg
        self.config = config
        self.mlm = mlm
        self._kept_in_evaluation: list[nn.Module] = []
        self.visual = build_image_tower(config.vision_cfg, config.embed_dim, pretrained_image)
        self.text_encoder = build_text_tower(text, pretrained_text)
        std = text.width**-0.5
        self.text_projection = nn.Parameter(torch.empty(text.width, config.embed_dim).normal_(std=std))
        self.logit_scale = nn.Parameter(torch.tensor(config.init_logit_scale))
        if config.init_logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(config.init_logit_bias))
        if mlm:
            self.img_special_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
            self.fusion_module = FusionTransformer(text.width, text.fusion_layers, text.heads)
            self.mlm_projection = nn.Parameter(torch.empty(text.width, text.vocab_size).normal_(std=std))

    def forward(
        self,
        images: torch.Tensor,
        tokens: torch.Tensor,
        mlm_labels: torch.Tensor | None = None,
        *,
        layout: TextLayout | None = None,
        features_only: bool = False,
    ) -> ModelOutput:
        """One pass for both losses.

        images: [B, 3, S, S], uint8, or float and normalised (`pmc_clip.normalize`).
        tokens: [B, T] int64, masked where `mlm_labels` is given (`pmc_clip.mask_tokens`).
        mlm_labels: [B, T] int64, true ids where masked, 0 where not scored; None: no masked-token prediction.
        layout: of the tokens and labels, made ahead; it stands for `mlm_labels`, which are not read then.
        features_only: leave out the masked-token prediction, but draw the same dropout as with it. A pass
            without labels does not: there the last text layer computes fewer states.
        """
        if len(images) != len(tokens):
            raise ModelError(f"{len(images)} images and {len(tokens)} captions: give one for each")
        layout = layout or self._layout(tokens, mlm_labels)
        image_features = self.encode_image(images, normalize=True)
        spread = self._spread(tokens, layout)
        starts = self._starts(tokens, layout)
        if layout.labelled is None:
            states, mlm_loss = self.text_encoder(tokens, spread, starts), None
        else:
            hidden = self.text_encoder(tokens, spread)
            states = hidden.index_select(0, starts)
            mlm_loss = None
            if not features_only:
                mlm_loss = self._masked_token_loss(hidden, image_features, spread, layout)
        text_features = F.normalize(self._project(states), dim=-1)
        bias = self.logit_bias if self.config.init_logit_bias is not None else None
        return ModelOutput(image_features, text_features, self.logit_scale.exp(), bias, mlm_loss)

    def keep_in_evaluation(self, modules: Iterable[nn.Module]) -> None:
        """From now on these modules of the model stay in evaluation mode while the others train."""
        self._kept_in_evaluation.extend(modules)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode, or evaluation mode; what is locked stays in the latter."""
        super().train(mode)
        for module in self._kept_in_evaluation:
            module.eval()
        return self

    def encode_image(self, images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """[B, 3, S, S] -> [B, embed_dim]; of length 1 with `normalize`.

        images: uint8, or float and normalised as the config says (`pmc_clip.normalize`).
        """
        vision = self.config.vision_cfg
        size = vision.image_size
        if images.shape[1:] != (3, size, size):
            raise ModelError(
                f"images are {list(images.shape)}, this model reads [B, 3, {size}, {size}]: resize them"
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ModelError(f"images are {images.dtype}: give torch.uint8, or floats that are normalised")
        if images.dtype == torch.uint8:
            images = normalize_pixels(images, vision.mean, vision.std).to(self.text_projection.dtype)
        features = self.visual(images)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(
        self, tokens: torch.Tensor, normalize: bool = False, *, layout: TextLayout | None = None
    ) -> torch.Tensor:
        """[B, T] int64 -> [B, embed_dim], from the state at [CLS]; of length 1 with `normalize`."""
        layout = layout or self._layout(tokens)
        states = self.text_encoder(tokens, self._spread(tokens, layout), self._starts(tokens, layout))
        features = self._project(states)
        return F.normalize(features, dim=-1) if normalize else features

    def fuse(self, tokens: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """Hidden states of the tokens after they saw the image.

        [B, T] int64 and [B, embed_dim] (of any length) -> [B, T, width]; times `mlm_projection` they score
        the vocabulary at each position. Zero at padding, where the model keeps that out.
        """
        if len(image_features) != len(tokens):
            raise ModelError(
                f"features of {len(image_features)} images and {len(tokens)} captions: give one for each"
            )
        layout = self._layout(tokens)
        spread = self._spread(tokens, layout)
        hidden = self.text_encoder(tokens, spread)
        every = torch.arange(len(hidden), device=hidden.device)
        return spread.spread(self._fuse(hidden, F.normalize(image_features, dim=-1), spread, every))

    def _layout(self, tokens: torch.Tensor, labels: torch.Tensor | None = None) -> TextLayout:
        return TextLayout.of(tokens, labels, mask_padding=self.config.text_cfg.mask_padding)

    def _spread(self, tokens: torch.Tensor, layout: TextLayout) -> Spread:
        """How the tokens that are read lie in the batch; ModelError where the batch is not this model's."""
        text = self.config.text_cfg
        batch, length = tokens.shape
        # Compared in this order, a compiled graph holds for captions of any length.
        if length > text.context_length or (not text.mask_padding and length < text.context_length):
            most = "at most " if text.mask_padding else ""
            raise ModelError(
                f"tokens are {list(tokens.shape)}, this model reads {most}{text.context_length} per caption, "
                "padding included: use its tokeniser's output"
            )
        return Spread.of(batch, length, layout.kept)

    def _starts(self, tokens: torch.Tensor, layout: TextLayout) -> torch.Tensor:
        """[B] int64: where each caption's [CLS] lies among the tokens that are read."""
        first = torch.arange(0, tokens.numel(), tokens.shape[1], device=tokens.device)
        return first if layout.kept is None else torch.searchsorted(layout.kept, first)

    def _project(self, states: torch.Tensor) -> torch.Tensor:
        """[B, width] at [CLS] -> [B, embed_dim]."""
        if self.config.text_cfg.pool == "pooler":
            states = self.text_encoder.pool(states)
        return states @ self.text_projection

    def _fuse(
        self, hidden: torch.Tensor, image_features: torch.Tensor, spread: Spread, rows: torch.Tensor
    ) -> torch.Tensor:
        """The fused states [R, width] at `rows` [R] of the packed hidden states [P, width]."""
        if not self.mlm:
            raise ModelError("a model built with mlm=False has no fusion transformer: build it with mlm=True")
        batch, length = spread.batch, spread.length
        marker = self.img_special_token[0].to(hidden.dtype).expand(batch, -1)
        image = image_features.to(hidden.dtype)
        # Each caption's row of the padded batch grows by two places, for the marker and the image.
        if spread.places is None:
            x = torch.cat([spread.spread(hidden), marker[:, None], image[:, None]], dim=1).flatten(0, 1)
            return self.fusion_module(x, Spread.of(batch, length + 2, None), rows + 2 * (rows // length))
        end = torch.arange(batch, device=hidden.device) * (length + 2) + length
        places = torch.cat([spread.places + 2 * (spread.places // length), end, end + 1])
        x = torch.cat([hidden, marker, image])
        return self.fusion_module(x, Spread.of(batch, length + 2, places), rows)

    def _masked_token_loss(
        self, hidden: torch.Tensor, image_features: torch.Tensor, spread: Spread, layout: TextLayout
    ) -> torch.Tensor:
        """Mean cross entropy at the labelled positions; only these, a few in a hundred, are scored at all."""
        assert layout.labelled is not None
        assert layout.targets is not None
        labelled = self._fuse(hidden, image_features, spread, layout.labelled)
        scores = labelled @ self.mlm_projection  # [M, vocabulary]
        total = F.cross_entropy(scores.float(), layout.targets, reduction="sum")
        return total / max(1, len(layout.targets))
