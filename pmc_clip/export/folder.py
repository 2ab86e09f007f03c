"""This package's own layout: a folder with config.json, model.safetensors and the tokeniser."""

import dataclasses
import json
from pathlib import Path

import torch

from pmc_clip.checkpoint import load_safetensors
from pmc_clip.config import ModelConfig
from pmc_clip.errors import ModelError
from pmc_clip.export.card import folder_card
from pmc_clip.export.files import (
    CARD,
    CONFIG,
    WEIGHTS,
    new_folder,
    write_json,
    write_tensors,
    write_tokenizer,
)
from pmc_clip.model import PMCCLIP
from pmc_clip.tokenizer import Tokenizer, get_tokenizer

FORMAT_VERSION = 1
_HERE = "."  # as text_cfg.tokenizer: the vocabulary lies in the folder


def save_folder(
    model: PMCCLIP, folder: str | Path, tokenizer: Tokenizer | None = None, *, overwrite: bool = False
) -> None:
    """Write a model as a folder that needs nothing else: `pretrained=folder` loads it again.

    tokenizer: the model's; None: what its config names.
    overwrite: replace an export that lies there.
    Raises ModelError where something is in the way, and OSError where the disk refuses.
    """
    with new_folder(folder, overwrite=overwrite) as draft:
        write_tokenizer(tokenizer or get_tokenizer(model.config), draft)
        write_tensors(draft / WEIGHTS, model.state_dict())
        write_json(
            draft / CONFIG,
            {
                "library_name": "pmc_clip",
                "format_version": FORMAT_VERSION,
                "mlm": model.mlm,
                "model": _portable_config(model).to_dict(),
            },
        )
        (draft / CARD).write_text(folder_card(model, Path(folder).resolve().name), encoding="utf-8")


def read_folder(folder: str | Path) -> tuple[ModelConfig, dict[str, torch.Tensor], bool]:
    """(config, tensors, whether the model predicts masked tokens) of a folder that `save_folder` wrote.

    The config names the folder as that of its vocabulary. Raises ModelError where a file is missing, damaged
    or of another format.
    """
    folder = Path(folder)
    place = folder / CONFIG
    told = _read_json(place)
    if not isinstance(told, dict) or told.get("format_version") != FORMAT_VERSION or "model" not in told:
        raise ModelError(
            f"{place}: not the config of an exported model (format version {FORMAT_VERSION}): give a folder "
            "that python -m pipeline.export wrote"
        )
    config = ModelConfig.from_dict(told["model"], str(place))
    if config.text_cfg.tokenizer == _HERE:
        text = dataclasses.replace(config.text_cfg, tokenizer=str(folder.absolute()))
        config = dataclasses.replace(config, text_cfg=text)
    return config, load_safetensors(folder / WEIGHTS), bool(told.get("mlm"))


def _portable_config(model: PMCCLIP) -> ModelConfig:
    """The model's config without what only this machine or the network could tell."""
    text = model.config.text_cfg
    name = text.bert_model_name
    return dataclasses.replace(
        model.config,
        text_cfg=dataclasses.replace(
            text,
            bert_model_name=None if name and Path(name).is_dir() else name,
            bert=text.bert or model.text_encoder.shape,
            tokenizer=_HERE,
        ),
    )


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    except ValueError as error:
        raise ModelError(f"{path}: not a JSON file ({error}): copy or download it again") from error
