"""Model configs: frozen dataclasses in the form of the published JSON files, read by name or from a file.

config = load_model_config("RN50_fusion4")          # one of list_models()
config = load_model_config("runs/a/model.json")     # or a file of the same form
ModelConfig.from_dict(config.to_dict()) == config   # what checkpoints store and a resume compares
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pmc_clip.errors import ModelError

CONFIG_FOLDER = Path(__file__).parent / "configs"
BACKBONES = ("ModifiedRN50",)
POOLS = ("cls",)

# A saved transformers BertConfig carries these beside the architecture. They are dropped where they say what
# this package does anyway; None: whatever they say, they do not touch what the tower computes.
_BERT_BOOKKEEPING: dict[str, Any] = {
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

Config = TypeVar("Config")


@dataclass(frozen=True)
class VisionConfig:
    """The image tower."""

    image_size: int = 224
    """Side of the square input, pixels; a multiple of 32."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Residual blocks per stage."""
    width: int = 64
    """Channels of the first stage; the last has width * 32."""
    head_width: int = 64
    """The attention pool has width * 32 // head_width heads, as published; at least 1."""
    backbone: str = "ModifiedRN50"
    """Kind of tower."""
    patch_size: int | None = None
    """In the published files for transformer towers; null for ResNets."""

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
    """Which hidden state becomes the text feature."""


@dataclass(frozen=True)
class ModelConfig:
    """All that determines the model's shape and what it computes."""

    embed_dim: int
    """Width of the shared image-text space."""
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    clip_model: str = "PMC_CLIP"
    """Model class, in the published files; there is one here."""

    def __post_init__(self) -> None:
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: nested dicts, lists and scalars."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "model config") -> "ModelConfig":
        """Build from the JSON form. `source` is the name that errors give for where the data came from."""
        return _build(cls, data, source)


def list_models() -> list[str]:
    """Names of the configs that ship with the package."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.json"))


def load_model_config(model: "str | Path | ModelConfig") -> ModelConfig:
    """The config of a name in `list_models()`, or of a JSON file; a ModelConfig is returned as it is."""
    if isinstance(model, ModelConfig):
        return model
    if model in list_models():
        path = CONFIG_FOLDER / f"{model}.json"
    elif (path := Path(model)).suffix != ".json":
        raise ModelError(
            f"unknown model '{model}': give one of {', '.join(list_models())}, or a path to a .json file"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path}: the model config cannot be read ({error.strerror}): check the path"
        ) from error
    except ValueError as error:
        raise ModelError(f"{path}: not a JSON file ({error}): correct or replace it") from error
    return ModelConfig.from_dict(data, str(path))


def _build(cls: type[Config], data: Any, place: str) -> Config:
    """A config dataclass from a mapping; unknown, missing and mistyped fields are named with their place."""
    if not isinstance(data, Mapping):
        raise ModelError(f"{place}: expected an object with fields, got {data!r}")
    if cls is BertArchitecture:
        data = _without_bookkeeping(data, place)
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(data) - set(hints)):
        raise ModelError(
            f"{place}: unknown field {', '.join(map(repr, unknown))}: remove it; known are {', '.join(hints)}"
        )
    if missing := [name for name in hints if name not in data and not hasattr(cls, name)]:  # no default
        raise ModelError(f"{place}: field {', '.join(map(repr, missing))} is missing: add it")
    return cls(**{name: _value(hints[name], value, f"{place}: {name}") for name, value in data.items()})


def _value(hint: Any, value: Any, place: str) -> Any:
    """`value` as the type `hint`; JSON's lists become tuples and its objects config dataclasses."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (member for member in typing.get_args(hint) if member is not types.NoneType)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, place)
    if typing.get_origin(hint) is tuple:
        members = typing.get_args(hint)
        if not isinstance(value, list | tuple) or len(value) != len(members):
            raise ModelError(f"{place}: expected a list of {len(members)} integers, got {value!r}")
        return tuple(_value(member, item, place) for member, item in zip(members, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ModelError(f"{place}: expected {hint.__name__}, got {value!r}")
    return value


def _without_bookkeeping(data: Mapping[str, Any], place: str) -> dict[str, Any]:
    kept = {}
    for name, value in data.items():
        neutral = _BERT_BOOKKEEPING.get(name)
        if name not in _BERT_BOOKKEEPING:
            kept[name] = value
        elif neutral is not None and value != neutral:
            raise ModelError(f"{place}: {name} is {value!r}: only {neutral!r} is supported; remove the field")
    return kept


def _check(config: ModelConfig) -> None:
    """Raise ModelError for the first field that is out of range or contradicts another."""
    vision, text = config.vision_cfg, config.text_cfg
    positive = {"embed_dim": config.embed_dim}
    positive |= {
        f"vision_cfg.{name}": getattr(vision, name) for name in ("image_size", "width", "head_width")
    }
    positive |= {f"vision_cfg.layers[{index}]": blocks for index, blocks in enumerate(vision.layers)}
    positive |= {
        f"text_cfg.{name}": getattr(text, name)
        for name in ("context_length", "vocab_size", "width", "heads", "layers", "fusion_layers")
    }
    for name, value in positive.items():
        if value < 1:
            raise ModelError(f"{name} is {value}: it must be at least 1")

    rules = [
        (config.clip_model == "PMC_CLIP", f"clip_model is {config.clip_model!r}: 'PMC_CLIP' is the only one"),
        (
            vision.backbone in BACKBONES,
            f"vision_cfg.backbone is {vision.backbone!r}: choose one of {', '.join(BACKBONES)}",
        ),
        (vision.patch_size is None, "vision_cfg.patch_size belongs to transformer towers: set it to null"),
        (
            vision.image_size % 32 == 0,
            f"vision_cfg.image_size is {vision.image_size}: the tower halves it five times, so make it a "
            "multiple of 32",
        ),
        (vision.width % 2 == 0, f"vision_cfg.width is {vision.width}: the stem halves it, so make it even"),
        (
            vision.width * 32 % vision.heads == 0,
            f"vision_cfg.head_width is {vision.head_width}: its {vision.heads} heads do not divide the "
            f"{vision.width * 32} channels (width * 32): change one of them",
        ),
        (text.pool in POOLS, f"text_cfg.pool is {text.pool!r}: choose one of {', '.join(POOLS)}"),
        (
            text.context_length >= 3,
            f"text_cfg.context_length is {text.context_length}: [CLS], a piece and [SEP] need 3",
        ),
        (
            text.width % text.heads == 0,
            f"text_cfg.heads is {text.heads} which does not divide width {text.width}: change one",
        ),
        (
            text.width == config.embed_dim,
            f"embed_dim is {config.embed_dim} and text_cfg.width is {text.width}: make them equal, the "
            "fusion transformer reads image features beside text states",
        ),
    ]
    if text.bert is not None:
        rules += _bert_rules(text, text.bert)
    for holds, message in rules:
        if not holds:
            raise ModelError(message)


def _bert_rules(text: TextConfig, bert: BertArchitecture) -> list[tuple[bool, str]]:
    twins = {"vocab_size": "vocab_size", "hidden_size": "width", "num_hidden_layers": "layers"}
    agree = [
        (
            getattr(bert, name) in (None, getattr(text, twin)),
            f"text_cfg.bert.{name} is {getattr(bert, name)} and text_cfg.{twin} is {getattr(text, twin)}: "
            f"make them equal, or leave out bert.{name}",
        )
        for name, twin in twins.items()
    ]
    return [
        *agree,
        (
            bert.num_attention_heads > 0 and text.width % bert.num_attention_heads == 0,
            f"text_cfg.bert.num_attention_heads is {bert.num_attention_heads}, which does not divide "
            f"text_cfg.width {text.width}: change one",
        ),
        (
            bert.max_position_embeddings >= text.context_length,
            f"text_cfg.bert.max_position_embeddings is {bert.max_position_embeddings}: raise it to "
            f"text_cfg.context_length {text.context_length} or more",
        ),
        (
            bert.pad_token_id == 0,
            f"text_cfg.bert.pad_token_id is {bert.pad_token_id}: make it 0, which the labels use, too",
        ),
    ]
