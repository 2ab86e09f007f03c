"""Weights by name: tags of the published ones, paths, and addresses; read, and loaded into a model.

    pretrained = read_pretrained("PMC_CLIP:beta")           # list_pretrained(); or just "beta"
    pretrained = read_pretrained("runs/a/checkpoints/latest")
    pretrained = read_pretrained("hf-hub:owner/name")       # or s3://…, https://…, whatever fsspec opens
    load_pretrained(model, pretrained)

What may lie at a path or an address: see `pmc_clip.checkpoint_layouts`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmc_clip.checkpoint import load_tensors
from pmc_clip.checkpoint_layouts import (
    CHECKPOINT,
    SPLIT_MODEL,
    LocalFolder,
    Pretrained,
    read_place,
    read_split,
)
from pmc_clip.config import ModelConfig, list_models, load_model_config
from pmc_clip.errors import ModelError
from pmc_clip.model import PMCCLIP

__all__ = ["Pretrained", "check_config", "list_pretrained", "load_pretrained", "read_pretrained"]


@dataclass(frozen=True)
class _Published:
    """Published weights: the config that reads them, and the hub's data set repository that holds them."""

    model: str
    repository: str


_TAGS = {
    "beta": _Published("RN50_fusion4", "axiong/pmc_oa_beta"),
    "RC": _Published("RN50_fusion4", "axiong/pmc_oa"),
    "split": _Published(SPLIT_MODEL, "axiong/pmc_oa"),
}

# Fields that do not touch what a model computes once its weights are loaded.
_NOT_COMPUTED = (
    "init_logit_scale",
    "init_logit_bias",
    "vision_cfg.timm_model_pretrained",
    "text_cfg.bert_model_name",
    "text_cfg.tokenizer",
    "text_cfg.bert.hidden_dropout_prob",
    "text_cfg.bert.attention_probs_dropout_prob",
    "text_cfg.bert.initializer_range",
    # The same as the text config's own fields, or null.
    "text_cfg.bert.vocab_size",
    "text_cfg.bert.hidden_size",
    "text_cfg.bert.num_hidden_layers",
)


def list_pretrained() -> list[tuple[str, str]]:
    """(model, tag) of the published weights that are known by name."""
    return [(published.model, tag) for tag, published in _TAGS.items()]


def read_pretrained(name: str | Path) -> Pretrained:
    """The weights that a name stands for: a tag of `list_pretrained()`, with `PMC_CLIP:` before it or not; a
    path; or an address (`hf-hub:owner/name[/file][@revision]`, `s3://…`, `https://…`, …).

    Files from elsewhere are kept: those of the hub in its own cache, others in
    `$XDG_CACHE_HOME/pmc-clip-stream/checkpoints` (`~/.cache/…`), until they change where they came from. A
    tag goes before a file of the same name: write `./beta` for that.
    Raises ModelError, with the remedy, for whatever cannot be found, fetched, or read as weights.
    """
    name = str(name)
    if not name:
        raise ModelError(f"no weights are named: give a tag ({', '.join(_TAGS)}), a path or an address")
    if tag := _tag(name):
        return _read_tag(tag)
    if name.startswith("hf-hub:"):
        return _read_hub(name)
    if "://" in name and not name.startswith("file://"):
        from pmc_clip.download import open_address

        place, file = open_address(name)
        return read_place(place, file, name)
    path = Path(name.removeprefix("file://"))
    if path.is_dir():
        return read_place(LocalFolder(path), None, name)
    if not path.exists():
        raise ModelError(
            f"{name}: neither a file or folder, nor one of the tags {', '.join(_TAGS)}: check the path"
        )
    return read_place(LocalFolder(path.parent), path.name, name)


def load_pretrained(model: PMCCLIP, pretrained: Pretrained) -> None:
    """Load the weights into a model.

    ModelError names the tensors that are missing, unexpected or of another shape, and the fields in which the
    model's config computes something else than that of the weights, as far as these say. Whether padding is
    read and how long captions are may be chosen anew, for training that goes on from there.
    """
    check_config(model.config, pretrained, chosen_anew=("text_cfg.mask_padding", "text_cfg.context_length"))
    load_tensors(model, pretrained.state_dict, pretrained.source)


def check_config(config: ModelConfig, pretrained: Pretrained, chosen_anew: tuple[str, ...] = ()) -> None:
    """Raise ModelError, with the fields, where a config computes something else than that of the weights.

    Fields that do not touch what a loaded model computes (initial values, dropout, where the vocabulary lies)
    may differ, and so may those in `chosen_anew`. Weights that do not say their config agree with any.
    """
    if pretrained.config is None:
        return
    asked, held = _computing_fields(config), _computing_fields(pretrained.config)
    differing = [
        f"{field} is {asked.get(field)!r} in the model and {held.get(field)!r} in the checkpoint"
        for field in {**asked, **held}
        if asked.get(field) != held.get(field) and field not in chosen_anew
    ]
    if None in (config.text_cfg.bert, pretrained.config.text_cfg.bert):  # transformers knows its shape
        differing = [told for told in differing if not told.startswith("text_cfg.bert")]
    if differing:
        known = [name for name in list_models() if load_model_config(name) == pretrained.config]
        raise ModelError(
            f"{pretrained.source}: was trained as another model: {'; '.join(differing)}. Build the model "
            f"that it was trained as{''.join(f', {name}' for name in known[:1])}"
        )


def _tag(name: str) -> str | None:
    """The tag that a name means, as it is written here."""
    spelled = re.fullmatch(r"(?:pmc_clip:)?(\w+)", name, re.IGNORECASE)
    return next((tag for tag in _TAGS if spelled and tag.lower() == spelled[1].lower()), None)


def _read_tag(tag: str) -> Pretrained:
    from pmc_clip.hub import HubRepository

    published, source = _TAGS[tag], f"PMC_CLIP:{tag}"
    place = HubRepository(published.repository, "dataset")
    if published.model == SPLIT_MODEL:
        return read_split(place, load_model_config(SPLIT_MODEL), source)
    return read_place(place, CHECKPOINT, source)


def _read_hub(name: str) -> Pretrained:
    from pmc_clip.hub import HubRepository

    parts = re.fullmatch(r"hf-hub:([^/@]+/[^/@]+)(?:/([^@]+))?(?:@(.+))?", name)
    if parts is None:
        raise ModelError(f"{name}: expected hf-hub:owner/name, with /file or @revision behind it as needed")
    repository, file, revision = parts.groups()
    return read_place(HubRepository(repository, "model", revision), file, name)


def _computing_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields that determine what a model with given weights computes, by their paths."""
    return {field: value for field, value in _flat(config.to_dict()).items() if field not in _NOT_COMPUTED}


def _flat(data: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            fields |= _flat(value, f"{place}{name}.")
        else:
            fields[f"{place}{name}"] = value
    return fields
