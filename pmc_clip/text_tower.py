"""Text tower: BERT over packed tokens (Devlin et al. 2019), under the parameter names of transformers.

The arithmetic is that of `transformers.BertModel`, to rounding; what differs is that padding that is kept out
of attention costs nothing, and that no state is computed that nobody reads. transformers itself is imported
only where pretrained weights are read: it takes seconds.
"""

import dataclasses
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from pmc_clip.attention import packed_attention
from pmc_clip.bert_names import read_under_any_name
from pmc_clip.config import BertArchitecture, TextConfig
from pmc_clip.config_rules import check_pretrained_bert
from pmc_clip.errors import ModelError
from pmc_clip.text_layout import PAD_ID, Spread

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class BertEmbeddings(nn.Module):
    """Token, position and segment embeddings, summed and normalised; captions are all one segment."""

    def __init__(self, vocab_size: int, width: int, shape: BertArchitecture):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=PAD_ID)
        self.position_embeddings = nn.Embedding(shape.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(shape.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=shape.layer_norm_eps)
        self.dropout = nn.Dropout(shape.hidden_dropout_prob)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[P] int64, [P] int64 -> [P, width]."""
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(x + self.position_embeddings(positions)))


class BertLayer(nn.Module):
    """Attention, then two dense layers; each adds to its input and is normalised after (post-norm)."""

    def __init__(self, width: int, shape: BertArchitecture):
        super().__init__()
        eps = shape.layer_norm_eps
        self.heads = shape.num_attention_heads
        self.attention_dropout = shape.attention_probs_dropout_prob
        self.dropout = shape.hidden_dropout_prob
        self.activation = ACTIVATIONS[shape.hidden_act]
        self.attention = nn.ModuleDict({"self": _Projections(width), "output": _Output(width, width, eps)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, shape.intermediate_size)})
        self.output = _Output(shape.intermediate_size, width, eps)

    def forward(self, x: torch.Tensor, spread: Spread, rows: torch.Tensor | None = None) -> torch.Tensor:
        """[P, width] -> [P, width], or [R, width] where only these `rows` [R] are asked for."""
        dropout = self.attention_dropout if self.training else 0.0
        attended = packed_attention(self.attention["self"](x), spread, self.heads, dropout)
        if rows is not None:
            x, attended = x.index_select(0, rows), attended.index_select(0, rows)
        x = self.attention["output"](attended, x, self.dropout)
        return self.output(self.activation(self.intermediate["dense"](x)), x, self.dropout)


class _Projections(nn.Module):
    """Queries, keys and values of attention, side by side."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[P, width] -> [P, 3 * width]."""
        projections = (self.query, self.key, self.value)
        weight = torch.cat([projection.weight for projection in projections])
        return F.linear(x, weight, torch.cat([projection.bias for projection in projections]))


class _Output(nn.Module):
    """Dense, dropout, added to the input of its part of the layer, normalised."""

    def __init__(self, in_width: int, width: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(in_width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: torch.Tensor, before: torch.Tensor, dropout: float) -> torch.Tensor:
        """[R, in_width] and the layer's input [R, width] -> [R, width]."""
        return self.LayerNorm(F.dropout(self.dense(x), dropout, self.training) + before)


class BertTower(nn.Module):
    """The tower: token ids to hidden states. With `pool: pooler` in the config, it has BERT's dense layer
    over the state at [CLS], too.

    shape: what the text config does not say itself.
    """

    def __init__(self, text: TextConfig, shape: BertArchitecture):
        super().__init__()
        self.shape = shape
        self.embeddings = BertEmbeddings(text.vocab_size, text.width, shape)
        layers = nn.ModuleList(BertLayer(text.width, shape) for _ in range(text.layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        if text.pool == "pooler":
            self.pooler = nn.ModuleDict({"dense": nn.Linear(text.width, text.width)})
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=shape.initializer_range)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=shape.initializer_range)
        nn.init.zeros_(self.embeddings.word_embeddings.weight[PAD_ID].detach())

    def forward(self, tokens: torch.Tensor, spread: Spread, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of the tokens that are read.

        tokens: [B, T] int64.
        spread: how those that are read lie in it.
        rows: [R] int64, which of them are asked for; None: all.
        Returns [P, width], or [R, width].
        """
        columns = torch.arange(spread.length, device=tokens.device).expand(spread.batch, -1)
        x = self.embeddings(spread.pack(tokens), spread.pack(columns))
        *first, last = self.encoder["layer"].children()
        for layer in first:
            x = layer(x, spread)
        return last(x, spread, rows)

    def pool(self, states: torch.Tensor) -> torch.Tensor:
        """States at [CLS] [B, width] -> BERT's own summary of them [B, width]."""
        return self.pooler["dense"](states).tanh()


def build_text_tower(text: TextConfig, pretrained: bool) -> BertTower:
    """The tower of a config.

    With `pretrained` and a `bert_model_name`, its weights are read by transformers (from its cache, a folder,
    or the hub). Otherwise the weights are random and nothing is read, if the config has `bert`.
    """
    name = text.bert_model_name
    if text.bert is not None and not (pretrained and name):
        return BertTower(text, text.bert)
    if not name:
        raise ModelError(
            "text_cfg has neither bert nor bert_model_name: give one, the text tower is built from it"
        )

    from transformers import BertConfig, BertModel

    try:
        if pretrained:
            pooled = text.pool == "pooler"
            source = read_under_any_name(
                name, lambda one: BertModel.from_pretrained(one, add_pooling_layer=pooled)
            )
            found = source.config
        else:
            source, found = None, read_under_any_name(name, BertConfig.from_pretrained)
    except (OSError, ValueError, RuntimeError) as error:
        remedy = "connect to the network once to cache it, or name a local folder in text_cfg.bert_model_name"
        if text.bert is not None:
            remedy += "; before a checkpoint is loaded, random weights (pretrained_text=False) are enough"
        raise ModelError(
            f"the text tower '{name}' cannot be loaded: {remedy}. transformers said: {error}"
        ) from error
    known = {field.name for field in dataclasses.fields(BertArchitecture)}
    shape = BertArchitecture(**{name: value for name, value in found.to_dict().items() if name in known})
    check_pretrained_bert(text, shape)
    tower = BertTower(text, shape)
    if source is not None:
        tower.load_state_dict(source.state_dict())
    return tower
