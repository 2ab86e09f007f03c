"""WordPiece tokeniser: captions to token ids, over the `tokenizers` library.

    tokenizer = get_tokenizer("tiny")
    tokens = tokenizer(["Axial CT of the chest.", "x-ray"])     # [2, 77] int64

A row is [CLS], the caption's pieces, [SEP], and [PAD]: up to context_length or, where the model keeps padding
out (`mask_padding`), up to the batch's longest caption.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors

from pmc_clip.bert_names import read_under_any_name
from pmc_clip.config import ModelConfig, load_model_config
from pmc_clip.errors import ModelError

PAD_MULTIPLE = 8  # the step in which lengths suit matrix units, and few enough lengths to compile for
SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_FOLDER = Path(__file__).parent / "vocab"
_BRACKETED = re.compile(r"\[\w+\]")  # [PAD], [UNK], [unused12]: entries that no text is split into


class Tokenizer:
    """Captions to ids, cut to `context_length` (the last token still is [SEP] then) and padded.

    It has no state that changes, so any thread may call it.

    Text is only ever text: a caption that contains "[CLS]" or "[MASK]" gets the pieces of those letters,
    never the special token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, context_length: int, *, pad_to_longest: bool = False):
        """`pad_to_longest`: pad to the batch's longest caption, rounded up to a multiple of 8 (at most
        `context_length`), instead of to `context_length`.
        """
        self.context_length = context_length
        self.pad_to_longest = pad_to_longest
        vocabulary = backend.get_vocab()
        pieces = [""] * (max(vocabulary.values()) + 1)
        for piece, index in vocabulary.items():
            pieces[index] = piece
        if missing := [name for name in SPECIAL_PIECES if name not in vocabulary]:
            raise ModelError(f"the vocabulary lacks {', '.join(missing)}: use one made for BERT")

        self.pieces = tuple(pieces)
        self.vocab_size = len(pieces)
        self.pad_id: int = vocabulary["[PAD]"]
        self.cls_id: int = vocabulary["[CLS]"]
        self.sep_id: int = vocabulary["[SEP]"]
        self.mask_id: int = vocabulary["[MASK]"]
        if self.pad_id != 0:
            raise ModelError(
                f"the vocabulary has [PAD] at {self.pad_id}: it must be entry 0, the label of 'not scored'"
            )
        self.special = (self.pad_id, self.cls_id, self.sep_id, self.mask_id)
        """Ids that stand for no text; [UNK] stands for a word."""
        self.continuation = np.array([piece.startswith("##") for piece in pieces])
        """[vocab_size] bool: pieces that continue a word."""
        self.is_special = np.isin(np.arange(self.vocab_size), self.special)
        """[vocab_size] bool: `special` as a look-up table."""
        self.ordinary_ids = np.array(
            [i for i, piece in enumerate(pieces) if piece and not _BRACKETED.fullmatch(piece)]
        )
        """Ids of pieces that text is split into: what a random replacement is drawn from."""

        backend.encode_special_tokens = True
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)]
        )
        backend.enable_truncation(context_length)
        backend.no_padding()
        self._backend = backend

    def __call__(self, captions: str | Sequence[str]) -> torch.Tensor:
        """One caption or several -> [B, T] int64; T is `context_length`, or less with `pad_to_longest`."""
        captions = [captions] if isinstance(captions, str) else list(captions)
        try:
            rows = [encoding.ids for encoding in self._backend.encode_batch_fast(captions)]
        except TypeError as error:
            place = next(i for i, caption in enumerate(captions) if not isinstance(caption, str))
            raise ModelError(f"caption {place} is {captions[place]!r}: expected text") from error
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        length = self._padded_length(int(lengths.max(initial=0)))
        tokens = np.full((len(rows), length), self.pad_id, np.int64)
        real = np.arange(length) < lengths[:, None]
        tokens[real] = np.fromiter(chain.from_iterable(rows), np.int64)
        return torch.from_numpy(tokens)

    def _padded_length(self, longest: int) -> int:
        """What a batch is padded to, whose longest caption has that many tokens."""
        if not self.pad_to_longest:
            return self.context_length
        return min(self.context_length, max(1, -(-longest // PAD_MULTIPLE)) * PAD_MULTIPLE)

    def to_json(self) -> str:
        """The vocabulary and how text is split, as the content of a tokenizer.json."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.no_truncation()
        return backend.to_str(pretty=True)

    def fingerprint(self) -> str:
        """Hash of the vocabulary: two tokenisers with one fingerprint give token ids the same meaning."""
        return hashlib.sha256("\n".join(self.pieces).encode()).hexdigest()[:16]


def get_tokenizer(model: str | Path | ModelConfig) -> Tokenizer:
    """The tokeniser of a model, given by name, path to a JSON file, or config (`model.config`).

    `text_cfg.tokenizer` names a vocabulary shipped in pmc_clip/vocab or a folder; without it, the vocabulary
    of `text_cfg.bert_model_name` is read through transformers.
    """
    text = load_model_config(model).text_cfg
    if text.tokenizer is not None:
        source, backend = text.tokenizer, _read_folder(text.tokenizer)
    elif text.bert_model_name is not None:
        source, backend = text.bert_model_name, _read_hub(text.bert_model_name)
    else:
        raise ModelError(
            "text_cfg has neither tokenizer nor bert_model_name: give one, the vocabulary comes from it"
        )
    tokenizer = Tokenizer(backend, text.context_length, pad_to_longest=text.mask_padding)
    if tokenizer.vocab_size > text.vocab_size:
        raise ModelError(
            f"the vocabulary '{source}' has {tokenizer.vocab_size} entries and text_cfg.vocab_size is "
            f"{text.vocab_size}: make room for all of them"
        )
    return tokenizer


def wordpiece_splitter(lowercase: bool = True) -> tokenizers.Tokenizer:
    """BERT's text clean-up and split into words, with no vocabulary yet."""
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _read_folder(name: str) -> tokenizers.Tokenizer:
    folder = next((path for path in (VOCAB_FOLDER / name, Path(name)) if path.is_dir()), None)
    if folder is None:
        shipped = ", ".join(sorted(path.parent.name for path in VOCAB_FOLDER.glob("*/vocab.txt")))
        raise ModelError(f"text_cfg.tokenizer '{name}' is no folder and not shipped: shipped are {shipped}")
    if (file := folder / "tokenizer.json").is_file():
        return tokenizers.Tokenizer.from_file(str(file))
    if not (file := folder / "vocab.txt").is_file():
        raise ModelError(
            f"{folder}: holds neither tokenizer.json nor vocab.txt: point text_cfg.tokenizer elsewhere"
        )
    settings = folder / "tokenizer_config.json"
    told = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    pieces = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    backend = wordpiece_splitter(lowercase=told.get("do_lower_case", True))
    backend.model = models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
    return backend


def _read_hub(name: str) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer

    try:
        loaded = read_under_any_name(name, AutoTokenizer.from_pretrained)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the vocabulary of '{name}' cannot be loaded: connect to the network once to cache it, or name "
            f"a folder with its vocab.txt in text_cfg.tokenizer. transformers said: {error}"
        ) from error
    # A copy: ours sets its own padding and special tokens.
    return tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
