"""Model configs: frozen dataclasses in the form of the published JSON files, read by name or from a file.

config = load_model_config("RN50_fusion4")          # one of list_models()
config = load_model_config("runs/a/model.json")     # or a file of the same form
add_model_config("my_models")                       # a folder whose files are known by name from now on
ModelConfig.from_dict(config.to_dict()) == config   # what checkpoints store and a resume compares
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from pmc_clip.config_json import from_json
from pmc_clip.config_rules import check
from pmc_clip.errors import ModelError

CONFIG_FOLDER = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class VisionConfig:
    """The image tower: a ResNet of this package, or a model of the timm package by its name."""

    image_size: int = 224
    """Side of the square input, pixels; for ResNets a multiple of 32."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Residual blocks per stage."""
    width: int = 64
    """Channels of the first stage; the last has width * 32."""
    head_width: int = 64
    """The attention pool has width * 32 // head_width heads, as published; at least 1."""
    backbone: str = "ModifiedRN50"
    """Kind of ResNet: ModifiedRN50, CLIP's, with an attention pool; RN50, plain, with an average pool."""
    patch_size: int | None = None
    """In the published files for transformer towers; null here, where those are timm's."""
    timm_model_name: str | None = None
    """Name of a timm model, which stands in place of `backbone` and its shape."""
    timm_model_pretrained: bool = False
    """Start from timm's pretrained weights, if `build_image_tower` is not told otherwise."""
    timm_pool: str = "avg"
    """How timm pools its features: avg, token, max, …, '' for the model's own way; or an attention pool
    over the feature map of a convolutional network: abs_attn (learned positions), rot_attn (rotary ones).
    """
    timm_proj: str = "linear"
    """What takes timm's features to `embed_dim`: linear, mlp, or none where they have that width already."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Channel means that images are normalised by, of values in [0, 1]."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Channel standard deviations that images are normalised by."""

    @property
    def heads(self) -> int:
        """Heads of the attention pool."""
        return max(1, self.width * 32 // self.head_width)


@dataclass(frozen=True)
class BertArchitecture:
    """A BERT tower's shape, in transformers' names. The default is BERT-base's, or the text config's."""

    vocab_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    # A saved transformers BertConfig carries these beside the architecture. They are dropped where they say
    # what this package does anyway; None: whatever they say, they do not touch what the tower computes.
    BOOKKEEPING: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "is_decoder": False,
            "add_cross_attention": False,
            "is_encoder_decoder": False,
            "model_type": "bert",
            "position_embedding_type": "absolute",
            "_name_or_path": None,
            "architectures": None,
            "bos_token_id": None,
            "chunk_size_feed_forward": None,
            "classifier_dropout": None,
            "dtype": None,
            "eos_token_id": None,
            "gradient_checkpointing": None,
            "id2label": None,
            "label2id": None,
            "output_attentions": None,
            "output_hidden_states": None,
            "problem_type": None,
            "return_dict": None,
            "tie_word_embeddings": None,
            "torch_dtype": None,
            "transformers_version": None,
            "use_cache": None,
        }
    )


@dataclass(frozen=True)
class TextConfig:
    """The text tower, the fusion transformer that reads its output, and the tokeniser that feeds it."""

    context_length: int = 77
    """Tokens that a caption is padded or cut to, [CLS] and [SEP] included."""
    vocab_size: int = 30522
    """Entries of the vocabulary."""
    width: int = 768
    """Width of the text tower and of the fusion transformer."""
    heads: int = 8
    """Attention heads of the fusion transformer (the text tower's are in `bert`)."""
    layers: int = 12
    """Layers of the text tower."""
    fusion_layers: int = 4
    """Layers of the fusion transformer."""
    bert_model_name: str | None = None
    """transformers' name (or folder) of a pretrained BERT: weights, and vocabulary without `tokenizer`."""
    bert: BertArchitecture | None = None
    """Shape of the tower, to build it with random weights and without a download."""
    tokenizer: str | None = None
    """A vocabulary shipped in pmc_clip/vocab, or a folder with tokenizer.json or vocab.txt."""
    mask_padding: bool = False
    """Keep padding out of attention. The published model did not."""
    pool: str = "cls"
    """What becomes the text feature: cls, the state at [CLS]; pooler, what BERT's pooler makes of it (tanh
    of a dense layer), as in the published split files.
    """


@dataclass(frozen=True)
class ModelConfig:
    """All that determines the model's shape and what it computes."""

    embed_dim: int
    """Width of the shared image-text space."""
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    clip_model: str = "PMC_CLIP"
    """Model class, in the published files; there is one here."""
    init_logit_scale: float = math.log(1 / 0.07)
    """Where the learned logarithm of the factor on similarities starts."""
    init_logit_bias: float | None = None
    """Where the learned bias of similarities starts; null: there is none. The sigmoid loss wants -10."""

    def __post_init__(self) -> None:
        check(self)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: nested dicts, lists and scalars."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "model config") -> "ModelConfig":
        """Build from the JSON form. `source` is the name that errors give for where the data came from."""
        return from_json(cls, data, source)


_added: dict[str, ModelConfig] = {}


def list_models() -> list[str]:
    """Names of the configs that ship with the package, and of those that `add_model_config` was given."""
    return sorted({path.stem for path in CONFIG_FOLDER.glob("*.json")} | set(_added))


def load_model_config(model: str | Path | ModelConfig) -> ModelConfig:
    """The config of a name in `list_models()`, or of a JSON file; a ModelConfig is returned as it is."""
    if isinstance(model, ModelConfig):
        return model
    if model in _added:
        return _added[str(model)]
    if model in list_models():
        return _read(CONFIG_FOLDER / f"{model}.json")
    if (path := Path(model)).suffix != ".json":
        raise ModelError(
            f"unknown model '{model}': give one of {', '.join(list_models())}, or a path to a .json file"
        )
    return _read(path)


def add_model_config(path: str | Path) -> list[str]:
    """Make a config file known by its name without .json, or all .json files in a folder and those below it.

    Returns the names, which `list_models` and everything that takes a model's name know from now on, in this
    process. Nothing is added where one file cannot be read, or its name stands for another config already.
    """
    path = Path(path)
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ModelError(f"{path}: no .json file is in this folder: give the one with the model configs")
    found: dict[str, ModelConfig] = {}
    for file in files:
        name, config = file.stem, _read(file)
        if name in found or name in list_models():
            known = found.get(name) or load_model_config(name)
            if known != config:
                raise ModelError(
                    f"{file}: there is another model of the name '{name}' already: rename the file"
                )
        found[name] = config
    _added.update(found)
    return list(found)


def _read(path: Path) -> ModelConfig:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path}: the model config cannot be read ({error.strerror}): check the path"
        ) from error
    except ValueError as error:
        raise ModelError(f"{path}: not a JSON file ({error}): correct or replace it") from error
    return ModelConfig.from_dict(data, str(path))
