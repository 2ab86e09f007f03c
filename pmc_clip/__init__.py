"""PMC-CLIP: the model, its configs, losses, masking, tokeniser, image transforms and checkpoint formats.

    import pmc_clip
    model = pmc_clip.create_model("tiny")
    tokenizer = pmc_clip.get_tokenizer("tiny")
    text_features = model.encode_text(tokenizer(["Axial CT of the chest."]), normalize=True)  # [1, D]

Names are looked up when they are first used, so that `import pmc_clip` costs milliseconds and a command that
only needs a config (or its --help) loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmc_clip.checkpoint import load_checkpoint_file as load_checkpoint_file
    from pmc_clip.checkpoint import load_published_state_dict as load_published_state_dict
    from pmc_clip.config import BertArchitecture as BertArchitecture
    from pmc_clip.config import ModelConfig as ModelConfig
    from pmc_clip.config import TextConfig as TextConfig
    from pmc_clip.config import VisionConfig as VisionConfig
    from pmc_clip.config import list_models as list_models
    from pmc_clip.config import load_model_config as load_model_config
    from pmc_clip.errors import ModelError as ModelError
    from pmc_clip.losses import contrastive_loss as contrastive_loss
    from pmc_clip.masking import mask_tokens as mask_tokens
    from pmc_clip.model import PMCCLIP as PMCCLIP
    from pmc_clip.model import ModelOutput as ModelOutput
    from pmc_clip.model import create_model as create_model
    from pmc_clip.tokenizer import Tokenizer as Tokenizer
    from pmc_clip.tokenizer import get_tokenizer as get_tokenizer
    from pmc_clip.transforms import MEAN as MEAN
    from pmc_clip.transforms import STD as STD
    from pmc_clip.transforms import center_crop as center_crop
    from pmc_clip.transforms import normalize as normalize
    from pmc_clip.transforms import to_rgb as to_rgb

_MODULE_OF = {
    "MEAN": "transforms",
    "PMCCLIP": "model",
    "STD": "transforms",
    "BertArchitecture": "config",
    "ModelConfig": "config",
    "ModelError": "errors",
    "ModelOutput": "model",
    "TextConfig": "config",
    "Tokenizer": "tokenizer",
    "VisionConfig": "config",
    "center_crop": "transforms",
    "contrastive_loss": "losses",
    "create_model": "model",
    "get_tokenizer": "tokenizer",
    "list_models": "config",
    "load_checkpoint_file": "checkpoint",
    "load_model_config": "config",
    "load_published_state_dict": "checkpoint",
    "mask_tokens": "masking",
    "normalize": "transforms",
    "to_rgb": "transforms",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pmc_clip' has no attribute {name!r}")
    value = getattr(import_module(f"pmc_clip.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
