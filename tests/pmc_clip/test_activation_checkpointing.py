"""Activation checkpointing: less is kept, and nothing else differs."""

from dataclasses import replace

import pytest
import torch

from pmc_clip import create_model, load_model_config
from pmc_clip.activation_checkpointing import checkpoint_activations
from pmc_clip.config import VisionConfig

TINY = load_model_config("tiny")
# With dropout in attention, too, which the tiny model has not.
DROPPING = replace(
    TINY, text_cfg=replace(TINY.text_cfg, bert=replace(TINY.text_cfg.bert, attention_probs_dropout_prob=0.2))
)
TIMM = [
    replace(TINY, vision_cfg=VisionConfig(160, timm_model_name=name, timm_pool=pool))
    for name, pool in (("test_vit", "token"), ("test_resnet", "avg"))
]


def learn(config, checkpointed: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """Gradients and statistics after two steps, and how many values the second kept for the way back."""
    torch.manual_seed(0)
    model = create_model(config).train()
    names = list(model.state_dict())
    if checkpointed:
        checkpoint_activations(model)
    assert list(model.state_dict()) == names
    size, kept = config.vision_cfg.image_size, 0
    for seed in range(2):
        torch.manual_seed(seed)
        tokens = torch.randint(5, 800, (6, 12))
        images, labels = torch.randn(6, 3, size, size), torch.where(tokens % 3 == 0, tokens, 0)
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = model(images, tokens, labels)
        match = (output.image_features @ output.text_features.T * output.logit_scale).softmax(1)
        (match.diagonal().sum() + output.mlm_loss).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return gradients, model.state_dict(), kept


@pytest.mark.parametrize("config", [DROPPING, *TIMM], ids=["resnet", "timm_vit", "timm_resnet"])
def test_gradients_dropout_and_statistics_are_those_of_a_model_without_it(config):
    plain, checkpointed = learn(config, False), learn(config, True)
    theirs = dict(zip(plain[0], checkpointed[0].values(), strict=True))
    assert [name for name, gradient in plain[0].items() if not torch.equal(gradient, theirs[name])] == []
    assert [name for name, value in plain[1].items() if not torch.equal(value, checkpointed[1][name])] == []


def test_far_less_is_kept_for_the_way_back():
    assert learn(DROPPING, True)[2] < 0.6 * learn(DROPPING, False)[2]
