"""The layouts in which weights are stored, and the places where their files lie.

    read_place(LocalFolder(Path("exported")), None, "exported")     # a Pretrained, of whatever lies there

A place may hold
- a checkpoint of the published code, with or without the `module.` of its tensors, or these as safetensors;
- a checkpoint of this project's training, which says the model's config;
- a folder that `pmc_clip.export` wrote;
- the three files of the published split: the towers and the projection, without the fusion transformer. They
  want a model of their own, `RN50_split`; files of another shape say theirs in a `config.json` beside them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from pmc_clip.checkpoint import (
    load_checkpoint_file,
    load_safetensors,
    load_torch_file,
    own_names,
    predicts_masked_tokens,
)
from pmc_clip.config import ModelConfig, load_model_config
from pmc_clip.errors import ModelError

CHECKPOINT = "checkpoint.pt"
LATEST = "latest"  # one line, with the name of the newest checkpoint beside it
EXPORTED_CONFIG, EXPORTED_WEIGHTS, EXPORTED_VOCABULARY = "config.json", "model.safetensors", "tokenizer.json"
SPLIT_MODEL = "RN50_split"
SPLIT_FILES = ("image_encoder(resnet50).pth", "text_encoder.pth", "text_projection_layer.pth")

Layout = Literal["published", "split", "own", "folder"]


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what is known about them."""

    state_dict: dict[str, torch.Tensor]
    """The tensors, by the names that the model here gives them; on the CPU."""
    config: ModelConfig | None
    """The model that they are of; None where the checkpoint does not say."""
    layout: Layout
    """How they were stored."""
    source: str
    """Where they come from, for messages."""

    @property
    def mlm(self) -> bool:
        """Whether the part that predicts masked tokens is among them."""
        return predicts_masked_tokens(self.state_dict)


class Place(Protocol):
    """A folder, a repository, or a prefix of storage: what holds a checkpoint's files."""

    def find(self, name: str) -> Path | None:
        """The file as a local one, fetched where need be; None where there is none of this name."""

    def lacks(self, name: str) -> ModelError:
        """The error that says so."""


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str) -> Path | None:
        """The file, if it is there."""
        path = self._folder / name
        return path if path.is_file() else None

    def lacks(self, name: str) -> ModelError:
        """That it is not."""
        return ModelError(f"{self._folder}: has no {name}: check the path")


def read_place(place: Place, name: str | None, source: str) -> Pretrained:
    """What lies in a place: the file of this name, or (None) what makes the place as a whole one layout.

    source: what the user called it. Raises ModelError where there are no weights, or damaged ones.
    """
    if name is None:
        return _read_folder(place, source)
    path = _need(place, name)
    if name == LATEST:
        return read_place(place, _newest(path), source)
    if path.suffix == ".safetensors":
        return Pretrained(own_names(load_safetensors(path)), None, "published", source)
    content = load_checkpoint_file(path)
    state = own_names(_state_dict(content, path))
    if isinstance(content.get("model"), Mapping):
        return Pretrained(state, ModelConfig.from_dict(content["model"], f"{path}: model"), "own", source)
    return Pretrained(state, None, "published", source)


def read_split(place: Place, config: ModelConfig, source: str) -> Pretrained:
    """The three files of the split as one model's tensors. They hold no logit scale: that is the config's."""
    image, text, projection = (_need(place, name) for name in SPLIT_FILES)
    state = {
        **_tower(image, "visual."),
        **_tower(text, "text_encoder."),
        "text_projection": _projection(projection),
        "logit_scale": torch.tensor(config.init_logit_scale),
    }
    return Pretrained(own_names(state), config, "split", source)


def _read_folder(place: Place, source: str) -> Pretrained:
    config = place.find(EXPORTED_CONFIG)
    if config and (weights := place.find(EXPORTED_WEIGHTS)):
        place.find(EXPORTED_VOCABULARY)  # so that it, too, is where the tokeniser will look for it
        return _read_exported(weights.parent, source)
    if place.find(SPLIT_FILES[0]):
        return read_split(place, _read_config(config) if config else load_model_config(SPLIT_MODEL), source)
    for name in (LATEST, CHECKPOINT):
        if place.find(name):
            return read_place(place, name, source)
    raise place.lacks(
        f"{EXPORTED_CONFIG} with {EXPORTED_WEIGHTS}, no {SPLIT_FILES[0]}, no {LATEST} and no {CHECKPOINT}; "
        "if a checkpoint of another name is there, give that, too"
    )


def _read_exported(folder: Path, source: str) -> Pretrained:
    from pmc_clip.export import read_folder

    config, state, _ = read_folder(folder)
    return Pretrained(own_names(state), config, "folder", source)


def _tower(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """A tower's tensors under their names in the whole model, whether saved under these or the tower's."""
    state = _state_dict(load_checkpoint_file(path), path)
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {prefix + name.removeprefix(prefix): tensor for name, tensor in plain.items()}


def _projection(path: Path) -> torch.Tensor:
    """[width, embed_dim], saved as a tensor or as the only one of a state_dict."""
    content = load_torch_file(path)
    if isinstance(content, Mapping):
        state = _state_dict(content, path)
        if {name.removeprefix("module.") for name in state} != {"text_projection"}:
            raise ModelError(
                f"{path}: holds {', '.join(map(str, state))}: expected the projection alone, as a tensor or "
                "under the name text_projection"
            )
        (content,) = state.values()
    if not isinstance(content, torch.Tensor):
        raise ModelError(f"{path}: holds a {type(content).__name__}, expected the projection as a tensor")
    return content.detach()


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The tensors that a file holds, under `state_dict` or by themselves."""
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state:
        raise ModelError(f"{path}: holds no tensors by their names: is it a model's checkpoint?")
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ModelError(
            f"{path}: expected a state_dict, or a dict that holds one under that name: "
            f"{', '.join(others[:8])} in it are no tensors"
        )
    return dict(state)


def _newest(path: Path) -> str:
    """The name in a `latest` file, which may come from anywhere and must not lead anywhere else."""
    name = path.read_text(encoding="utf-8", errors="replace").strip()
    if re.fullmatch(r"step-\d+", name):
        raise ModelError(
            f"{path}: names {name}, a checkpoint in parts of a run with --fsdp: make one file of it with "
            "python -m pipeline.export"
        )
    if not re.fullmatch(r"[\w.-]+\.pt", name):
        raise ModelError(f"{path}: names no checkpoint beside it ({name[:80]!r}): name a checkpoint yourself")
    return name


def _need(place: Place, name: str) -> Path:
    path = place.find(name)
    if path is None:
        raise place.lacks(name)
    return path


def _read_config(path: Path) -> ModelConfig:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not a JSON file ({error}): correct or remove it") from error
    return ModelConfig.from_dict(data, str(path))
