"""Locked towers: what is locked does not change, what is not does."""

from dataclasses import replace

import pytest
import torch

from pmc_clip import ModelError, create_model, load_model_config
from pmc_clip.config import VisionConfig
from pmc_clip.locking import lock_tower, tower_parts

TINY = load_model_config("tiny")
# A transformer of timm's, small enough for a test.
VIT = replace(TINY, vision_cfg=VisionConfig(160, timm_model_name="test_vit", timm_pool="token"))
TOWERS = [("visual", 0), ("visual", 2), ("text_encoder", 0), ("text_encoder", 1)]


@pytest.mark.parametrize(("config", "parts"), [(TINY, 6), (VIT, None)])
def test_parts_hold_every_parameter_of_a_tower_once(config, parts):
    model = create_model(config)
    for tower, count in ((model.visual, parts), (model.text_encoder, 1 + config.text_cfg.layers)):
        found = tower_parts(tower)
        names = [name for part in found for name in part]
        assert sorted(names) == sorted(name for name, _ in tower.named_parameters())
        assert all(found)
        assert count in (None, len(found))


@pytest.mark.parametrize("config", [TINY, VIT])
@pytest.mark.parametrize(
    ("tower", "keep"), [("visual", 0), ("visual", 2), ("text_encoder", 0), ("text_encoder", 1)]
)
def test_what_is_locked_stays_as_it_is_in_training_and_the_rest_moves(config, tower, keep):
    """Weights and batch norms' statistics; also after an evaluation in between."""
    torch.manual_seed(0)
    model = create_model(config)
    parts = tower_parts(getattr(model, tower))
    locked = {f"{tower}.{name}" for part in parts[: len(parts) - keep] for name in part}
    assert lock_tower(model, tower, keep) == len(parts) - keep
    model.train()
    model.eval().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step_once(model)
    changed = {name for name, now in model.state_dict().items() if not torch.equal(now, before[name])}
    assert not changed & locked
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in model.named_parameters()} - locked
    statistics = {name for name in before if name.startswith(tower) and "running" in name}
    still = {name for name in statistics if f"{name.rsplit('.', 1)[0]}.weight" in locked}
    assert not changed & still
    assert statistics - still <= changed


def step_once(model: torch.nn.Module) -> None:
    size = model.config.vision_cfg.image_size
    tokens = torch.randint(5, 800, (4, 9))
    output = model(torch.randn(4, 3, size, size), tokens, torch.where(tokens % 2 == 0, tokens, 0))
    loss = (output.image_features @ output.text_features.T * output.logit_scale).softmax(1).diagonal().sum()
    (loss + output.mlm_loss).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1).step()


def test_a_tower_has_at_least_one_locked_part():
    with pytest.raises(ModelError, match=r"image tower has 6.*give at most 5"):
        lock_tower(create_model("tiny"), "visual", 6)
