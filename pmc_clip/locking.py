"""Towers that stay as they are while the rest trains: all of one, or all but its last parts.

    lock_tower(model, "visual", keep=0)             # the whole image tower
    lock_tower(model, "text_encoder", keep=2)       # the text tower, but for its last two layers

In parts from the input to the output: of a ResNet the stem, its four stages and the pool or projection; of a
timm model what timm takes for its layers, and the projection; of BERT the embeddings and each layer.
"""

from typing import Any

from torch import nn

from pmc_clip.errors import ModelError
from pmc_clip.model import PMCCLIP
from pmc_clip.resnet_tower import ModifiedResNet, ResNet
from pmc_clip.text_tower import BertTower


def lock_tower(model: PMCCLIP, tower: str, keep: int = 0) -> int:
    """Lock a tower, `visual` or `text_encoder`, but for its last `keep` parts; returns how many are locked.

    Nothing of what is locked changes any more: its parameters get no gradients, its batch norms normalise by
    the statistics that they have, and it drops nothing out. ModelError where nothing would be left to lock.
    """
    parts = tower_parts(getattr(model, tower))
    if not 0 <= keep < len(parts):
        raise ModelError(
            f"{keep} unlocked parts: the {'image' if tower == 'visual' else 'text'} tower has {len(parts)}, "
            f"of which at least one stays locked: give at most {len(parts) - 1}"
        )
    parameters = dict(getattr(model, tower).named_parameters())
    locked = parts[: len(parts) - keep]
    for name in (name for part in locked for name in part):
        parameters[name].requires_grad_(False)
    model.keep_in_evaluation(_without_gradients(getattr(model, tower)))
    return len(locked)


def tower_parts(tower: nn.Module) -> list[list[str]]:
    """The names of a tower's parameters, part by part from its input to its output."""
    names = [name for name, _ in tower.named_parameters()]
    if isinstance(tower, BertTower):
        layers = [f"encoder.layer.{number}." for number, _ in enumerate(tower.encoder["layer"].children())]
        ends = ["embeddings.", *layers[:-1]]
        return _by_prefix(names, [*((end,) for end in ends), (layers[-1], "pooler.")])
    if isinstance(tower, ModifiedResNet | ResNet):
        stages = [(f"layer{number}.",) for number in range(1, 5)]
        return _by_prefix(names, [("conv", "bn"), *stages, ("attnpool.", "head.")])
    from timm.models import group_parameters  # the tower is timm's, so timm is there

    trunk: Any = tower.get_submodule("trunk")
    groups = group_parameters(trunk, trunk.group_matcher(coarse=False))
    parts = [[f"trunk.{name}" for name in groups[key]] for key in sorted(groups)]
    return [*parts, [name for name in names if name.startswith("head.")]]


def _by_prefix(names: list[str], prefixes: list[tuple[str, ...]]) -> list[list[str]]:
    return [[name for name in names if name.startswith(prefix)] for prefix in prefixes]


def _without_gradients(tower: nn.Module) -> list[nn.Module]:
    """The modules that have parameters, none of which is trained."""
    return [
        module
        for module in tower.modules()
        if any(True for _ in module.parameters()) and not any(p.requires_grad for p in module.parameters())
    ]
