"""PMC-CLIP: the model, its configs, losses, masking, tokeniser, image transforms and checkpoint formats.

    import pmc_clip
    model, preprocess_train, preprocess_val = pmc_clip.create_model_and_transforms("RN50_fusion4", "beta")
    tokenizer = pmc_clip.get_tokenizer("RN50_fusion4")
    text_features = model.encode_text(tokenizer(["Axial CT of the chest."]), normalize=True)  # [1, D]

Names are looked up when they are first used, so that `import pmc_clip` costs milliseconds and a command that
only needs a config (or its --help) loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmc_clip.accumulation import Part as Part
    from pmc_clip.accumulation import accumulate as accumulate
    from pmc_clip.checkpoint import load_checkpoint_file as load_checkpoint_file
    from pmc_clip.checkpoint import load_published_state_dict as load_published_state_dict
    from pmc_clip.config import BertArchitecture as BertArchitecture
    from pmc_clip.config import ModelConfig as ModelConfig
    from pmc_clip.config import TextConfig as TextConfig
    from pmc_clip.config import VisionConfig as VisionConfig
    from pmc_clip.config import add_model_config as add_model_config
    from pmc_clip.config import list_models as list_models
    from pmc_clip.config import load_model_config as load_model_config
    from pmc_clip.errors import ModelError as ModelError
    from pmc_clip.export import push_to_hub as push_to_hub
    from pmc_clip.export import read_folder as read_folder
    from pmc_clip.export import save_folder as save_folder
    from pmc_clip.export import save_open_clip as save_open_clip
    from pmc_clip.export import save_published as save_published
    from pmc_clip.factory import create_model as create_model
    from pmc_clip.factory import create_model_and_transforms as create_model_and_transforms
    from pmc_clip.losses import LossWeights as LossWeights
    from pmc_clip.losses import contrastive_loss as contrastive_loss
    from pmc_clip.losses import siglip_loss as siglip_loss
    from pmc_clip.masking import mask_tokens as mask_tokens
    from pmc_clip.model import PMCCLIP as PMCCLIP
    from pmc_clip.model import ModelOutput as ModelOutput
    from pmc_clip.pretrained import Pretrained as Pretrained
    from pmc_clip.pretrained import list_pretrained as list_pretrained
    from pmc_clip.pretrained import load_pretrained as load_pretrained
    from pmc_clip.pretrained import read_pretrained as read_pretrained
    from pmc_clip.text_layout import TextLayout as TextLayout
    from pmc_clip.tokenizer import Tokenizer as Tokenizer
    from pmc_clip.tokenizer import get_tokenizer as get_tokenizer
    from pmc_clip.transforms import MEAN as MEAN
    from pmc_clip.transforms import STD as STD
    from pmc_clip.transforms import EvalTransform as EvalTransform
    from pmc_clip.transforms import TrainTransform as TrainTransform
    from pmc_clip.transforms import center_crop as center_crop
    from pmc_clip.transforms import normalize as normalize
    from pmc_clip.transforms import to_rgb as to_rgb

_NAMES_OF = {
    "accumulation": ("Part", "accumulate"),
    "checkpoint": ("load_checkpoint_file", "load_published_state_dict"),
    "config": (
        *("BertArchitecture", "ModelConfig", "TextConfig", "VisionConfig"),
        *("add_model_config", "list_models", "load_model_config"),
    ),
    "errors": ("ModelError",),
    "export": ("push_to_hub", "read_folder", "save_folder", "save_open_clip", "save_published"),
    "factory": ("create_model", "create_model_and_transforms"),
    "losses": ("LossWeights", "contrastive_loss", "siglip_loss"),
    "masking": ("mask_tokens",),
    "model": ("PMCCLIP", "ModelOutput"),
    "pretrained": ("Pretrained", "list_pretrained", "load_pretrained", "read_pretrained"),
    "text_layout": ("TextLayout",),
    "tokenizer": ("Tokenizer", "get_tokenizer"),
    "transforms": (
        *("MEAN", "STD", "EvalTransform", "TrainTransform"),
        *("center_crop", "normalize", "to_rgb"),
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pmc_clip' has no attribute {name!r}")
    value = getattr(import_module(f"pmc_clip.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
