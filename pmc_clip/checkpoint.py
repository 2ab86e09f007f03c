"""Read checkpoints: files into tensors, and the published layout into a model.

model = create_model("RN50_fusion4", pretrained_text=False)
load_published_state_dict(model, load_checkpoint_file("checkpoint.pt")["state_dict"])
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pmc_clip.errors import ModelError
from pmc_clip.model import PMCCLIP

# In the published checkpoints, but part of no computation: the model here does without them.
_UNUSED = (
    "positional_embedding",
    "attn_mask",
    "ln_final.",
    "text_encoder.pooler.",
    "text_encoder.embeddings.position_ids",
    "text_encoder.embeddings.token_type_ids",
)
_MLM_ONLY = ("fusion_module.", "img_special_token", "mlm_projection")


def load_checkpoint_file(path: str | Path) -> dict[str, Any]:
    """The content of a torch checkpoint, on the CPU; tensors and plain values are unpickled, never code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ModelError(
            f"{path}: the checkpoint cannot be read ({error.strerror}): check the path"
        ) from error
    # What torch raises for damaged bytes depends on where the damage is.
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise ModelError(
            f"{path}: not a whole checkpoint of tensors and plain values: copy or download it again ({error})"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, expected a dict: is it a checkpoint?")
    return content


def load_published_state_dict(model: PMCCLIP, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load tensors of the published layout (with or without the `module.` of DistributedDataParallel).

    Tensors that the published code stored and never used are passed over, as are those of the fusion
    transformer if the model was built with `mlm=False`. Every other difference is an error that names the
    tensors.
    """
    passed_over = _UNUSED if model.mlm else _UNUSED + _MLM_ONLY
    given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    given = {name: tensor for name, tensor in given.items() if not name.startswith(passed_over)}
    expected = model.state_dict()
    problems = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "of another shape": [
            f"{name} ({list(tensor.shape)}, the model has {list(expected[name].shape)})"
            for name, tensor in given.items()
            if name in expected and tensor.shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise ModelError(
            f"the checkpoint does not fit the model: {told}. Build the model from the checkpoint's config"
        )
    model.load_state_dict(given)


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
