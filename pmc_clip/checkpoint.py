"""Read checkpoints: files into tensors, and tensors into a model.

    model = create_model("RN50_fusion4", pretrained_text=False)
    load_published_state_dict(model, load_checkpoint_file("checkpoint.pt")["state_dict"])

Which tensors a file of which layout holds is known in `pmc_clip.checkpoint_layouts`; whatever the layout,
they come into the model by `load_tensors` here, which names those that do not fit.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pmc_clip.errors import ModelError
from pmc_clip.model import PMCCLIP

# Buffers that BertModel stored in older versions of transformers; their content is known without them.
_BERT_BUFFERS = ("text_encoder.embeddings.position_ids", "text_encoder.embeddings.token_type_ids")
# What the published class has besides and uses nowhere: its text feature is the state at [CLS], so that its
# pooler is still what BERT was pretrained with.
_PUBLISHED_MARK = "positional_embedding"
_PUBLISHED_UNUSED = (_PUBLISHED_MARK, "attn_mask", "ln_final.", "text_encoder.pooler.")
_MLM_MARK = "mlm_projection"
_MLM_ONLY = ("fusion_module.", "img_special_token", _MLM_MARK)

# The published schedule computed with numpy, so that the optimiser's state in its checkpoints holds learning
# rates that are pickled as numpy scalars, under this name by numpy 1 and 2. Building one runs no code.
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]


def load_checkpoint_file(path: str | Path) -> dict[str, Any]:
    """The content of a torch checkpoint, on the CPU; tensors and plain values are unpickled, never code."""
    content = load_torch_file(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, expected a dict: is it a checkpoint?")
    return content


def load_torch_file(path: str | Path) -> Any:
    """What torch.save wrote, on the CPU: a tensor, a plain value, or dicts and lists of them; never code."""
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ModelError(
            f"{path}: the checkpoint cannot be read ({error.strerror}): check the path"
        ) from error
    # What torch raises for damaged bytes depends on where the damage is.
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        if wanted := re.search(r"GLOBAL ([\w.]+) (?:was not an allowed|whose module)", str(error)):
            raise ModelError(
                f"{path}: to read it, {wanted[1]} would have to be run, and a checkpoint may not run code: "
                "ask whoever wrote it for the tensors alone (a state_dict, or safetensors)"
            ) from error
        raise ModelError(
            f"{path}: not a whole checkpoint of tensors and plain values: copy or download it again "
            f"({_reason(error)})"
        ) from error


def load_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: the checkpoint cannot be read (no such file): check the path") from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file: copy or download it again ({_reason(error)})"
        ) from error


def predicts_masked_tokens(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether the tensors are of a model with masked-token prediction."""
    return _MLM_MARK in state_dict


def own_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that the model here has, by the names it gives them.

    The published names but for the `module.` of DistributedDataParallel, and without the tensors that the
    published class stored and never used.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    unused = _BERT_BUFFERS + (_PUBLISHED_UNUSED if _PUBLISHED_MARK in plain else ())
    return {name: tensor for name, tensor in plain.items() if not name.startswith(unused)}


def load_published_state_dict(model: PMCCLIP, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load tensors of the published layout (with or without the `module.` of DistributedDataParallel).

    Tensors that the published code stored and never used are passed over. Otherwise as `load_tensors`.
    """
    load_tensors(model, own_names(state_dict), "the checkpoint")


def load_tensors(model: PMCCLIP, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Load tensors under the model's own names.

    A model that was built with `mlm=False` leaves those of the fusion transformer aside. Every other
    difference is a ModelError that names the tensors, and nothing has changed then.
    source: where they come from, for that message.
    """
    if model.mlm and not predicts_masked_tokens(tensors):
        raise ModelError(
            f"{source}: has no {_MLM_MARK}, so no weights for masked-token prediction: build the model with "
            "mlm=False"
        )
    passed_over = () if model.mlm else _MLM_ONLY
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(passed_over)}
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
        raise ModelError(f"{source}: does not fit the model: {told}. Build the model that it was trained as")
    model.load_state_dict(given)


def _reason(error: Exception) -> str:
    """The line of torch's page-long messages that says what is wrong."""
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return said.splitlines()[0]


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
