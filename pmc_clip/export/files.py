"""Files and folders that appear whole or not at all, and what several layouts put into them."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pmc_clip.errors import ModelError
from pmc_clip.tokenizer import Tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
CARD = "README.md"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_EXPORTED = {
    CONFIG,
    WEIGHTS,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    CARD,
    _TOKENIZER,
    _TOKENIZER_CONFIG,
}


@contextmanager
def new_folder(folder: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `folder` to write into, which takes its place when the block ends well.

    Raises ModelError where `folder` holds something, unless that is an export and `overwrite` is given, and
    OSError where the disk refuses. In neither case anything has changed.
    """
    target = Path(folder).resolve()
    _check_free(target, overwrite)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in draft.iterdir():
            _flush(path)
        _take_place(draft, target)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def new_file(path: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """As `new_folder`, for a single file."""
    target = Path(path).resolve()
    if target.is_dir():
        raise ModelError(f"{target} is a folder: give the path of a file")
    if target.exists() and not overwrite:
        raise ModelError(f"{target} exists: give another path, or ask to overwrite it")
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        _flush(draft)
        draft.replace(target)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _check_free(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ModelError(f"{target} is a file: give a folder")
    there = {entry.name for entry in target.iterdir()}
    if foreign := sorted(there - _EXPORTED):
        raise ModelError(
            f"{target} holds {foreign[0]}, which would be lost: give another folder, or a new one in it"
        )
    if there and not overwrite:
        raise ModelError(f"{target} holds an export: give another folder, or ask to overwrite it")


def _take_place(draft: Path, target: Path) -> None:
    """Let `draft` be found as `target`; between the two renames an older one lies beside it, whole."""
    if not target.exists():
        draft.rename(target)
        return
    before = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    target.rename(before)
    try:
        draft.rename(target)
    except OSError:
        before.rename(target)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _not_written(target: Path, error: OSError) -> OSError:
    reason = error.strerror or error
    return OSError(f"{target}: the export could not be written ({reason}): make room, or give another place")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, for people too."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors: on the CPU, contiguous, each with memory of its own."""
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    try:
        save_file(own, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what transformers' AutoTokenizer and `pmc_clip.get_tokenizer` read from a folder."""
    (folder / _TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
    write_json(
        folder / _TOKENIZER_CONFIG,
        {
            # The class that takes tokenizer.json as it is: BertTokenizer would set its own normaliser.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": tokenizer.context_length,
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
            "split_special_tokens": True,  # "[CLS]" in a caption is text, as it is here
        },
    )
