"""What a step saves changes nothing: same losses, same gradients.

The reference (plain_model.py) computes every position, query and score. In float32, without dropout, losses
agree to 1e-5 and gradients to 2e-5 of each parameter's largest.
"""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import pmc_clip
import pmc_clip.fusion
import pmc_clip.text_tower
from benchmarks.published_step import largest_difference
from pmc_clip.text_layout import TextLayout
from tests.pmc_clip.plain_model import assert_same_gradients, plain_losses

PROJECT = Path(__file__).parents[2]
CAPTIONS = ("Axial CT of the chest.", "x-ray", "", "Histology section; red staining of tumor cells in liver.")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Losses = tuple[torch.Tensor, torch.Tensor]


def build_model(*, dropout: float = 0.0, **text: object) -> pmc_clip.PMCCLIP:
    """The tiny model with two fusion layers, every weight of which matters."""
    config = pmc_clip.load_model_config("tiny")
    shape = replace(config.text_cfg.bert, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    text_cfg = replace(config.text_cfg, bert=shape, fusion_layers=2, **text)
    torch.manual_seed(0)
    model = pmc_clip.create_model(replace(config, text_cfg=text_cfg))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def make_batch(model: pmc_clip.PMCCLIP, captions: tuple[str, ...] = CAPTIONS, seed: int = 0) -> Batch:
    """uint8 images, masked tokens and labels."""
    draw = np.random.default_rng(seed)
    images = torch.from_numpy(draw.integers(0, 256, (len(captions), 3, 64, 64), dtype=np.uint8))
    tokenizer = pmc_clip.get_tokenizer(model.config)
    tokens = tokenizer(captions)
    return images, *pmc_clip.mask_tokens(tokens, draw.random((*tokens.shape, 3)), tokenizer, 0.5)


def losses(model: pmc_clip.PMCCLIP, *batch: torch.Tensor, **more: object) -> Losses:
    output = model(*batch, **more)
    match = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
    return match, output.mlm_loss


def assert_same(found: Losses, expected: Losses, model: pmc_clip.PMCCLIP) -> None:
    for name, own, theirs in zip(("match", "mlm"), found, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert_same_gradients(sum(found), sum(expected), model, relative=2e-5)


@pytest.mark.parametrize("pool", ["cls", "pooler"])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_losses_and_gradients_are_those_of_the_plain_computation(mask_padding, pool):
    model = build_model(mask_padding=mask_padding, pool=pool)
    images, tokens, labels = make_batch(model)
    assert (tokens == 0).float().mean() > (0.4 if mask_padding else 0.8)
    expected = plain_losses(model, pmc_clip.normalize(images), tokens, labels)
    assert_same(losses(model, images, tokens, labels), expected, model)


@pytest.fixture
def build_without(monkeypatch):
    """`build_without("masked", model)`: the model as the benchmark builds it without one of its gains."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")  # where scripts find each other
    # What the benchmark changes for its whole process is changed back here.
    for module in (pmc_clip.text_tower, pmc_clip.fusion):
        monkeypatch.setattr(module, "packed_attention", module.packed_attention)
    for layer in (pmc_clip.text_tower.BertLayer, pmc_clip.fusion.ResidualAttentionBlock):
        monkeypatch.setattr(layer, "forward", layer.forward)
    our_step = importlib.import_module("our_step")

    def build(gain: str, model: pmc_clip.PMCCLIP) -> pmc_clip.PMCCLIP:
        built = our_step.build_ours(model.config, frozenset(our_step.GAINS) - {gain})
        built.load_state_dict(model.state_dict())
        return built

    return build


@pytest.mark.parametrize("gain", ["masked", "query", "sdpa", "rows"])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_losses_and_gradients_are_those_without_each_gain(build_without, gain, mask_padding):
    model = build_model(mask_padding=mask_padding)
    batch = make_batch(model)
    found = losses(model, *batch)
    sum(found).backward()
    without = build_without(gain, model)
    expected = losses(without, *batch)
    sum(expected).backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    theirs = dict(without.named_parameters())
    rounding = 5e-7 * max(float(parameter.grad.abs().max()) for parameter in theirs.values())
    for name, own in model.named_parameters():
        wanted = theirs[name].grad
        tolerance = 2e-5 * float(wanted.abs().max()) + rounding
        torch.testing.assert_close(
            own.grad, wanted, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_published_form_gives_the_same_losses():
    assert largest_difference("pmc_captions_8k") < 1e-5


def test_channels_last_changes_nothing():
    model = build_model()
    images, tokens, labels = make_batch(model)
    expected = losses(model, images, tokens, labels)
    wanted = torch.autograd.grad(sum(expected), tuple(model.parameters()))
    model.to(memory_format=torch.channels_last)
    found = losses(model, images.contiguous(memory_format=torch.channels_last), tokens, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for own, theirs in zip(torch.autograd.grad(sum(found), tuple(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()) + 1e-6)


def test_uint8_images_are_normalised_inside_as_outside():
    model = build_model()
    images, tokens, labels = make_batch(model)
    inside, outside = (losses(model, each, tokens, labels) for each in (images, pmc_clip.normalize(images)))
    assert inside == outside


def test_a_layout_made_ahead_stands_for_the_labels():
    model = build_model()
    images, tokens, labels = make_batch(model)
    layout = TextLayout.of(tokens, labels, mask_padding=True)
    assert losses(model, images, tokens, layout=layout) == losses(model, images, tokens, labels)


def test_padding_to_the_longest_caption_or_to_all_77_is_the_same():
    model = build_model(mask_padding=True)
    images, tokens, labels = make_batch(model)
    assert tokens.shape[1] < 77
    wide = [torch.nn.functional.pad(part, (0, 77 - part.shape[1])) for part in (tokens, labels)]
    assert_same(losses(model, images, tokens, labels), losses(model, images, *wide), model)


def test_text_features_do_not_depend_on_what_else_is_asked_for():
    model = build_model()
    images, tokens, labels = make_batch(model)
    beside_words = model(images, tokens, labels).text_features
    alone = model(images, tokens).text_features
    torch.testing.assert_close(alone, beside_words, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.encode_text(tokens, normalize=True), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("captions", [("",), ("", ""), ("x-ray",)])
def test_captions_without_words_and_batches_of_one_have_finite_gradients(captions):
    model = build_model()
    images, tokens, labels = make_batch(model, captions)
    if not any(captions):
        assert tokens.ne(0).sum(1).tolist() == [2] * len(captions)
        assert not labels.any()
    match, mlm = losses(model, images, tokens, labels)
    assert any(captions) or mlm == 0
    (match + mlm).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_rows_of_padding_alone_disturb_no_caption():
    model = build_model(mask_padding=True).eval()
    _, tokens, _ = make_batch(model)
    nothing = torch.zeros_like(tokens[:1])
    among = model.encode_text(torch.cat([nothing, tokens, nothing]))
    torch.testing.assert_close(among[1:-1], model.encode_text(tokens), rtol=0, atol=1e-5)
    assert torch.isfinite(among).all()


@pytest.mark.slow
@pytest.mark.parametrize("mask_padding", [True, False])
def test_one_compiled_graph_gives_the_same_for_captions_of_any_length(mask_padding):
    model = build_model(mask_padding=mask_padding)
    images, tokens, labels = make_batch(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    torch._dynamo.reset()
    for captions in (CAPTIONS, (*CAPTIONS[1:], "Chest film of a patient"), (*CAPTIONS[:3], "CT " * 99)):
        images, tokens, labels = make_batch(model, captions)
        layout = TextLayout.of(tokens, labels, mask_padding=mask_padding)
        for part in (*layout, tokens):
            if part is not None:
                torch._dynamo.maybe_mark_dynamic(part, part.ndim - 1)
        found = losses(compiled, images, tokens, layout=layout)
        assert_same(found, losses(model, images, tokens, labels), model)
    assert counter.frame_count == 1


def test_bf16_stays_near_float32():
    model = build_model()
    images, tokens, labels = make_batch(model)
    exact = losses(model, images, tokens, labels)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, tokens, labels)
    assert output.mlm_loss.dtype == torch.float32
    match = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
    (match + output.mlm_loss).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    for found, expected in zip((match, output.mlm_loss), exact, strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=0.03)


def test_dropout_acts_in_training_alone_and_follows_the_seed():
    model = build_model(dropout=0.3)
    batch = make_batch(model)

    def step(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [loss.item() for loss in losses(model, *batch)]

    assert step(1) == step(1)
    assert step(1) != pytest.approx(step(2), rel=1e-3)
    model.eval()
    assert step(1) == step(2)
