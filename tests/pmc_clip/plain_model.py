"""The model's losses written plainly: every position, every query, every score, over other people's modules.

What is computed from a PMCCLIP's own parameters, and so differentiable by them, by transformers' BertModel,
F.multi_head_attention_forward and a log-softmax over all positions: what optimised code must equal.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import BertConfig, BertModel

import pmc_clip
from pmc_clip.config import BertArchitecture, TextConfig
from pmc_clip.resnet_tower import AttentionPool
from pmc_clip.text_tower import BertTower


def plain_losses(
    model: pmc_clip.PMCCLIP, images: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match and masked-token loss of normalised images [B, 3, S, S], tokens [B, T] and labels [B, T]."""
    text = model.config.text_cfg
    real = tokens != 0 if text.mask_padding else torch.ones_like(tokens, dtype=torch.bool)
    hidden, pooled = bert_states(model.text_encoder, text, text.bert, tokens, real)
    image_features = F.normalize(plain_image_features(model, images), dim=-1)
    text_features = F.normalize((hidden[:, 0] if pooled is None else pooled) @ model.text_projection, dim=-1)

    marker = model.img_special_token.expand(len(tokens), -1, -1)
    x = torch.cat([hidden, marker, image_features[:, None]], dim=1)
    for block in model.fusion_module.resblocks:
        normed = block.ln_1(x).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            normed, normed, normed, text.width, text.heads,
            block.attn.in_proj_weight, block.attn.in_proj_bias, None, None, False, 0.0,
            block.attn.out_proj.weight, block.attn.out_proj.bias,
            key_padding_mask=~F.pad(real, (0, 2), value=True), need_weights=False,
        )  # fmt: skip
        x = x + attended.transpose(0, 1)
        x = x + block.mlp(block.ln_2(x))
    scores = (x[:, :-2] @ model.mlm_projection).log_softmax(-1)
    similarities = model.logit_scale.exp() * image_features @ text_features.T
    pairs = torch.arange(len(tokens))
    match = (F.cross_entropy(similarities, pairs) + F.cross_entropy(similarities.T, pairs)) / 2
    return match, F.nll_loss(scores.transpose(1, 2), labels, ignore_index=0)


def bert_states(
    tower: BertTower,
    text: TextConfig,
    shape: BertArchitecture,
    tokens: torch.Tensor,
    attend: torch.Tensor | None = None,
    *,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden states [B, T, width] of transformers' BertModel with the tower's weights, and its pooler's
    output [B, width] where the tower has one.

    attend: [B, T] bool, the positions that may be looked at; None: all.
    seed: of the dropout.
    """
    shared = ("num_attention_heads", "intermediate_size", "hidden_act", "hidden_dropout_prob")
    shared += ("attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size", "layer_norm_eps")
    config = BertConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        num_hidden_layers=text.layers,
        **{name: getattr(shape, name) for name in shared},
    )
    model = BertModel(config, add_pooling_layer=text.pool == "pooler")
    weights = dict(tower.named_parameters())
    assert weights.keys() == dict(model.named_parameters()).keys()
    mask = None if attend is None else attend.long()
    torch.manual_seed(seed)
    output = functional_call(model, weights, kwargs={"input_ids": tokens, "attention_mask": mask})
    return output.last_hidden_state, output.pooler_output


def plain_image_features(model: pmc_clip.PMCCLIP, images: torch.Tensor) -> torch.Tensor:
    """[B, embed_dim], with all queries of the attention pool."""
    seen: dict[str, Any] = {}
    pool = model.visual.attnpool
    handle = pool.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    model.visual(images)
    handle.remove()
    return all_queries(pool, seen["x"])[0]


def all_queries(pool: AttentionPool, x: torch.Tensor) -> torch.Tensor:
    """[B, C, side, side] -> what the pool's attention gives at every position [1 + side², B, out_dim]."""
    positions = x.flatten(2).permute(2, 0, 1)
    positions = torch.cat([positions.mean(0, keepdim=True), positions]) + pool.positional_embedding[:, None]
    attended, _ = F.multi_head_attention_forward(
        positions, positions, positions, x.shape[1], pool.heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0,
        out_proj_weight=pool.c_proj.weight, out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    return attended


def assert_same_gradients(
    found: torch.Tensor,
    expected: torch.Tensor,
    module: torch.nn.Module,
    *,
    relative: float = 1e-5,
) -> None:
    """Both losses' gradients agree in every parameter to `relative` of its largest, and to the rounding of
    zero: some, as of the keys' biases, are zero in exact arithmetic.
    """
    names, parameters = zip(*module.named_parameters(), strict=True)
    of_found = torch.autograd.grad(found, parameters, materialize_grads=True)
    of_expected = torch.autograd.grad(expected, parameters, materialize_grads=True)
    rounding = 5e-7 * max(float(gradient.abs().max()) for gradient in of_expected)
    for name, own, theirs in zip(names, of_found, of_expected, strict=True):
        tolerance = relative * float(theirs.abs().max()) + rounding
        difference = float((own - theirs).abs().max())
        assert difference <= tolerance, f"{name}: {difference:.2e} apart, {tolerance:.2e} allowed"
