"""Text tower: a BERT encoder from the transformers library, without its pooler.

transformers is imported when the first tower is built, not with the package: it takes seconds.
"""

import dataclasses

from torch import nn

from pmc_clip.config import TextConfig
from pmc_clip.errors import ModelError


def build_text_tower(text: TextConfig, pretrained: bool) -> nn.Module:
    """A `transformers.BertModel` for the config.

    With `pretrained` and a `bert_model_name`, its weights are read by transformers (from its cache, a folder,
    or the hub). Otherwise the weights are random and nothing is read, if the config has `bert`.
    """
    from transformers import BertConfig, BertModel

    if text.bert is None and text.bert_model_name is None:
        raise ModelError(
            "text_cfg has neither bert nor bert_model_name: give one, the text tower is built from it"
        )
    options = {"attn_implementation": "sdpa"}
    if text.bert is not None and not (pretrained and text.bert_model_name):
        shape = dataclasses.asdict(text.bert)
        shape |= {"vocab_size": text.vocab_size, "hidden_size": text.width, "num_hidden_layers": text.layers}
        return BertModel(BertConfig(**shape, **options), add_pooling_layer=False)

    name = text.bert_model_name
    try:
        if pretrained:
            tower = BertModel.from_pretrained(name, add_pooling_layer=False, **options)
        else:
            tower = BertModel(BertConfig.from_pretrained(name, **options), add_pooling_layer=False)
    except (OSError, ValueError, RuntimeError) as error:
        remedy = "connect to the network once to cache it, or name a local folder in text_cfg.bert_model_name"
        if text.bert is not None:
            remedy += "; before a checkpoint is loaded, random weights (pretrained_text=False) are enough"
        raise ModelError(
            f"the text tower '{name}' cannot be loaded: {remedy}. transformers said: {error}"
        ) from error
    _check_shape(text, tower.config)
    return tower


def _check_shape(text: TextConfig, loaded: object) -> None:
    for field, expected in {
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
    }.items():
        if (found := getattr(loaded, field)) != expected:
            raise ModelError(
                f"the text tower '{text.bert_model_name}' has {field} {found}, the model config says "
                f"{expected}: correct text_cfg"
            )
