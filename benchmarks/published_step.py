"""The published PMC-CLIP training step, in plain PyTorch: what benchmarks/train_step.py compares with.

Written from what the published step computes, in the form it computes it in:

- images arrive normalised in float32, in PyTorch's default memory format (NCHW);
- the attention pool attends from all positions (50 at 224 pixels) and keeps the first;
- captions arrive as strings and are tokenised twice in `forward`, masked text and labels, padded to 77;
- transformers' BertModel, with its pooler, reads all 77 positions without an attention mask;
- nn.MultiheadAttention in the fusion blocks, positions first, over the 77 and two more;
- log-softmax over the vocabulary at every position, of which nll_loss reads the few that are labelled;
- AdamW as its constructor gives it; on a GPU fp16 autocast with a GradScaler, and cuDNN trying its algorithms
  out; on a CPU float32.

Left out is what only slows it down: CUDA_LAUNCH_BLOCKING=1, and reading the loss after a step. Parameters
have the names of the published checkpoints, so a PMCCLIP's weights fit (`PublishedForm.like`).
"""

import random
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import BertWordPieceTokenizer
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import pmc_clip
from pmc_clip import PMCCLIP, ModelConfig, VisionConfig
from pmc_clip.tokenizer import VOCAB_FOLDER


class Block(nn.Module):
    """A bottleneck of CLIP's ResNet: where it strides, both paths average first."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.average = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != 4 * width:
            skip = nn.Conv2d(inputs, 4 * width, 1, bias=False)
            parts = {"-1": nn.AvgPool2d(stride), "0": skip, "1": nn.BatchNorm2d(4 * width)}
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(self.average(y)))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class AllQueryPool(nn.Module):
    """Attention from the mean position and all others to all of them; the first is kept."""

    def __init__(self, side: int, channels: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, channels) / channels**0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))
        self.c_proj = nn.Linear(channels, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).permute(2, 0, 1)  # [positions, B, C]
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None].to(x.dtype)
        query, key, value = self.q_proj, self.k_proj, self.v_proj
        attended, _ = F.multi_head_attention_forward(
            x, x, x, x.shape[-1], self.heads,
            in_proj_weight=None, in_proj_bias=torch.cat([query.bias, key.bias, value.bias]),
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
            out_proj_weight=self.c_proj.weight, out_proj_bias=self.c_proj.bias,
            training=self.training, need_weights=False, use_separate_proj_weight=True,
            q_proj_weight=query.weight, k_proj_weight=key.weight, v_proj_weight=value.weight,
        )  # fmt: skip
        return attended[0]


class ImageTower(nn.Module):
    """CLIP's ResNet: three convolutions, four stages, the pool."""

    def __init__(self, vision: VisionConfig, outputs: int) -> None:
        super().__init__()
        width = vision.width
        stem = ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1))
        for number, (before, after, stride) in enumerate(stem, start=1):
            setattr(self, f"conv{number}", nn.Conv2d(before, after, 3, stride, padding=1, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(after))
        inputs = width
        for number, depth in enumerate(vision.layers, start=1):
            stage = []
            for place in range(depth):
                stage.append(Block(inputs, width, stride=2 if number > 1 and place == 0 else 1))
                inputs = 4 * width
            setattr(self, f"layer{number}", nn.Sequential(*stage))
            width *= 2
        self.attnpool = AllQueryPool(vision.image_size // 32, inputs, vision.heads, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(convolution(x)), inplace=True)
        x = F.avg_pool2d(x, 2)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.attnpool(x)


class FusionBlock(nn.Module):
    """A pre-norm transformer block, positions first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        parts = {
            "c_fc": nn.Linear(width, 4 * width),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(4 * width, width),
        }
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Prediction(NamedTuple):
    """What the published model hands its loss."""

    image_features: torch.Tensor  # [B, D]
    text_features: torch.Tensor  # [B, D]
    logit_scale: torch.Tensor
    scores: torch.Tensor  # [B, T, vocabulary] logarithms of probabilities
    tokens: torch.Tensor  # [B, T]
    labels: torch.Tensor  # [B, T], 0: not scored


class PublishedForm(nn.Module):
    """The model. `attention`: of the text tower, "sdpa" (what transformers gives today) or "eager" (written
    out, which is all that the transformers of its time had).
    """

    def __init__(
        self, config: ModelConfig, tokenizer: PreTrainedTokenizerFast, attention: str = "sdpa"
    ) -> None:
        super().__init__()
        text, width = config.text_cfg, config.text_cfg.width
        self.tokenizer, self.context_length = tokenizer, text.context_length
        self.visual = ImageTower(config.vision_cfg, config.embed_dim)
        self.text_encoder = BertModel(bert_config(config, attention))
        self.text_projection = nn.Parameter(torch.randn(width, config.embed_dim) / width**0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.img_special_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        blocks = (FusionBlock(width, text.heads) for _ in range(text.fusion_layers))
        self.fusion_module = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.mlm_projection = nn.Parameter(torch.randn(width, text.vocab_size) / width**0.5)

    @classmethod
    def like(cls, model: PMCCLIP, tokenizer: PreTrainedTokenizerFast, attention: str = "sdpa") -> Self:
        """The published form with a model's weights; random ones in BERT's pooler, which no loss reads."""
        published = cls(model.config, tokenizer, attention)
        problems = published.load_state_dict(model.state_dict(), strict=False)
        assert not problems.unexpected_keys, problems
        assert all(name.startswith("text_encoder.pooler.") for name in problems.missing_keys), problems
        return published

    def forward(
        self, images: torch.Tensor, masked_texts: Sequence[str], label_texts: Sequence[str]
    ) -> Prediction:
        """images: [B, 3, S, S] float32, normalised, on the model's device."""
        image_features = F.normalize(self.visual(images), dim=-1)
        tokens, labels = (self.tokenise(texts).to(images.device) for texts in (masked_texts, label_texts))
        hidden = self.text_encoder(input_ids=tokens).last_hidden_state
        starts = torch.nonzero(tokens == self.tokenizer.cls_token_id)[:, 1]
        at_start = hidden[torch.arange(len(hidden), device=hidden.device), starts]
        text_features = F.normalize(at_start @ self.text_projection, dim=-1)

        marker = self.img_special_token.expand(len(hidden), -1, -1)
        x = torch.cat([hidden, marker, image_features[:, None]], dim=1).permute(1, 0, 2)
        for block in self.fusion_module["resblocks"]:
            x = block(x)
        scores = F.log_softmax(x.permute(1, 0, 2)[:, :-2] @ self.mlm_projection, dim=-1)
        return Prediction(image_features, text_features, self.logit_scale.exp(), scores, tokens, labels)

    def tokenise(self, texts: Sequence[str]) -> torch.Tensor:
        """[B, T] int64."""
        return self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )["input_ids"]


def bert_config(config: ModelConfig, attention: str = "sdpa") -> BertConfig:
    """transformers' description of a model config's text tower."""
    text = config.text_cfg
    assert text.bert is not None, "the shape of the text tower is not in the config"
    return BertConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.bert.num_attention_heads,
        intermediate_size=text.bert.intermediate_size,
        hidden_act=text.bert.hidden_act,
        hidden_dropout_prob=text.bert.hidden_dropout_prob,
        attention_probs_dropout_prob=text.bert.attention_probs_dropout_prob,
        max_position_embeddings=text.bert.max_position_embeddings,
        type_vocab_size=text.bert.type_vocab_size,
        layer_norm_eps=text.bert.layer_norm_eps,
        attn_implementation=attention,
    )


def published_losses(prediction: Prediction) -> tuple[torch.Tensor, torch.Tensor]:
    """Match and masked-token loss, scalars."""
    images, texts = prediction.image_features, prediction.text_features
    targets = torch.arange(len(images), device=images.device)
    match = F.cross_entropy(prediction.logit_scale * images @ texts.T, targets)
    match = (match + F.cross_entropy(prediction.logit_scale * texts @ images.T, targets)) / 2
    return match, F.nll_loss(prediction.scores.transpose(1, 2), prediction.labels, ignore_index=0)


class PublishedStep:
    """The training step: half of each loss, the update, the clamp of the logit scale."""

    def __init__(self, model: PublishedForm, device: torch.device) -> None:
        self.model, self.device = model.to(device).train(), device
        parameters = [*model.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.2},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        torch.backends.cudnn.benchmark = True

    def __call__(self, images: torch.Tensor, masked_texts: Sequence[str], label_texts: Sequence[str]) -> None:
        """images: [B, 3, S, S] float32, normalised, on the host."""
        self.optimizer.zero_grad()
        on_gpu = self.device.type == "cuda"
        with torch.autocast("cuda", torch.float16) if on_gpu else nullcontext():
            images = images.to(self.device, non_blocking=True)
            match, mlm = published_losses(self.model(images, masked_texts, label_texts))
            total = 0.5 * match + 0.5 * mlm
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, float(np.log(100)))


def published_tokenizer(vocabulary: str, entries: int) -> PreTrainedTokenizerFast:
    """The fast tokeniser that AutoTokenizer gives for BERT, over a shipped vocabulary filled up with [unused]
    entries.
    """
    text = (VOCAB_FOLDER / vocabulary / "vocab.txt").read_text(encoding="utf-8")
    pieces = text.removesuffix("\n").split("\n")
    pieces += [f"[unused{number}]" for number in range(entries - len(pieces))]
    backend = BertWordPieceTokenizer({piece: index for index, piece in enumerate(pieces)}, lowercase=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer,  # transformers takes the bare tokeniser, not the class around it
        unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]", mask_token="[MASK]",
    )  # fmt: skip


def mask_text(
    caption: str, tokenizer: PreTrainedTokenizerFast, draw: random.Random, ratio: float = 0.15
) -> tuple[str, str]:
    """A caption as masked text and label text.

    Of its words, `ratio` are chosen; of these 80 % are masked, 10 % become a random piece, 10 % stay. The
    label text keeps the chosen words; of the others it has [PAD] for each piece. As published, the two need
    not agree in length.
    """
    masked: list[str] = []
    labels: list[str] = []
    for word in caption.split():
        pieces = len(tokenizer.tokenize(word))
        chosen = draw.random() < ratio
        labels += [word] if chosen else ["[PAD]"] * pieces
        action = draw.random() if chosen else 1.0
        if action < 0.8:
            masked += ["[MASK]"] * pieces
        elif action < 0.9:
            masked.append(tokenizer.convert_ids_to_tokens(draw.randrange(5, tokenizer.vocab_size)))
        else:
            masked.append(word)
    return " ".join(masked), " ".join(labels)


def largest_difference(vocabulary: str) -> float:
    """Between the losses that the two sides compute from one tiny model's weights, without dropout."""
    torch.manual_seed(0)
    config = pmc_clip.load_model_config("tiny")
    assert config.text_cfg.bert is not None
    bert = replace(config.text_cfg.bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = replace(config, text_cfg=replace(config.text_cfg, bert=bert, mask_padding=False))
    ours = PMCCLIP(config)
    published = PublishedForm.like(ours, published_tokenizer(vocabulary, config.text_cfg.vocab_size))
    draw = random.Random(0)
    captions = ("Axial CT of the chest.", "Histology section; red staining of tumor cells in liver.", "x-ray")
    texts = [mask_text(caption, published.tokenizer, draw, ratio=0.5) for caption in captions]
    images = torch.randn(len(texts), 3, config.vision_cfg.image_size, config.vision_cfg.image_size)

    prediction = published(images, *zip(*texts, strict=True))
    output = ours(images, prediction.tokens, prediction.labels)
    match = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
    pairs = zip((match, output.mlm_loss), published_losses(prediction), strict=True)
    return max(abs(found - expected).item() for found, expected in pairs)
