"""What the tests of gradient accumulation share: a small model, a batch in parts, and in one graph."""

import dataclasses
from collections.abc import Sequence

import torch

import pmc_clip
from pmc_clip.accumulation import Losses, Part
from pmc_clip.text_layout import TextLayout

WEIGHTS = pmc_clip.LossWeights(0.3, 0.7)


def small_model(*, dropout: float = 0.1, bias: bool = False, mlm: bool = True) -> pmc_clip.PMCCLIP:
    """In training mode, but for the BatchNorm layers, which normalise by their running statistics."""
    config = pmc_clip.load_model_config("tiny")
    bert = dataclasses.replace(
        config.text_cfg.bert,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        intermediate_size=64,
    )
    text = dataclasses.replace(
        config.text_cfg, width=32, vocab_size=200, bert=bert, mask_padding=True, context_length=16
    )
    config = dataclasses.replace(
        config,
        embed_dim=32,
        vision_cfg=dataclasses.replace(config.vision_cfg, image_size=32),
        text_cfg=text,
        init_logit_bias=-2.0 if bias else None,
    )
    torch.manual_seed(0)
    model = pmc_clip.create_model(config, mlm=mlm)
    with torch.no_grad():
        for parameter in model.parameters():  # those that start at zero hide the gradients behind them
            parameter += 0.02 * torch.randn_like(parameter)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def parts_of(
    sizes: Sequence[int], *, seed: int = 0, unlabelled: Sequence[int] = (), mlm: bool = True
) -> list[Part]:
    """A batch in parts of these sizes; no token of the parts `unlabelled` is scored."""
    draw = torch.Generator().manual_seed(seed)
    count, length = sum(sizes), 12
    images = torch.randn(count, 3, 32, 32, generator=draw)
    tokens = torch.randint(5, 200, (count, length), generator=draw)
    tokens[torch.arange(length) >= torch.randint(3, length + 1, (count, 1), generator=draw)] = 0
    labels = torch.where(torch.rand(count, length, generator=draw) < 0.3, tokens, 0)
    parts = []
    for index, rows in enumerate(torch.arange(count).split(list(sizes))):
        scored = labels[rows] * (index not in unlabelled) if mlm else None
        layout = TextLayout.of(tokens[rows], scored, mask_padding=True)
        parts.append(Part(images[rows], tokens[rows], layout))
    return parts


def match_loss(images, texts, scale, bias) -> torch.Tensor:
    """The loss that fits the model: with a bias the sigmoid loss."""
    ids = torch.arange(len(images)) // 2  # neighbours, across parts, too, are never negatives
    if bias is None:
        return pmc_clip.contrastive_loss(images, texts, scale, ids)
    return pmc_clip.siglip_loss(images, texts, scale, bias, ids)


def in_one_graph(model: torch.nn.Module, parts: Sequence[Part]) -> Losses:
    """The batch's losses with all parts' activations in memory, and their gradients by one way back."""
    outputs = [model(part.images, part.tokens, layout=part.layout) for part in parts]
    match = match_loss(
        torch.cat([output.image_features for output in outputs]),
        torch.cat([output.text_features for output in outputs]),
        outputs[0].logit_scale,
        outputs[0].logit_bias,
    )
    mlm = None
    if outputs[0].mlm_loss is not None:
        scored = sum(part.labelled for part in parts)
        sums = [output.mlm_loss * part.labelled for output, part in zip(outputs, parts, strict=True)]
        mlm = torch.stack(sums).sum() / max(1, scored)
    total = WEIGHTS.total(match, mlm)
    total.backward()
    return Losses(total.detach(), match.detach(), None if mlm is None else mlm.detach())


def take_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters' gradients, which are then none."""
    gradients = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return gradients
