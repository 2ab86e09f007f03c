"""The model trains: deterministic from the seed, every parameter reached, any batch accepted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pmc_clip
from pmc_clip.resnet_tower import AttentionPool
from tests.pmc_clip.plain_model import all_queries, assert_same_gradients


@pytest.fixture
def tiny() -> pmc_clip.PMCCLIP:
    torch.manual_seed(0)
    return pmc_clip.create_model("tiny")


@pytest.fixture(scope="module")
def batch(tiny_tokenizer):
    captions = [
        "Axial CT of the chest.",
        "x-ray",
        "",
        "Histology section; red staining of tumor cells in liver.",
    ]
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    tokens = tiny_tokenizer(captions)
    tokens, labels = pmc_clip.mask_tokens(tokens, draw.random((*tokens.shape, 3)), tiny_tokenizer, 0.5)
    assert labels.any()
    return pmc_clip.normalize(torch.from_numpy(pixels)), tokens, labels


def _loss(model: pmc_clip.PMCCLIP, images, tokens, labels=None) -> torch.Tensor:
    output = model(images, tokens, labels)
    loss = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
    return loss if output.mlm_loss is None else loss + output.mlm_loss


def test_tiny_has_three_million_parameters(tiny):
    assert sum(parameter.numel() for parameter in tiny.parameters()) == pytest.approx(3e6, rel=0.1)


def test_same_seed_same_weights():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(pmc_clip.create_model("tiny").state_dict())
    first, again, other = models
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["text_projection"], other["text_projection"])


def test_published_initialisation(golden_config):
    torch.manual_seed(0)
    state = pmc_clip.create_model("tiny").state_dict()
    assert state["logit_scale"].exp() == pytest.approx(1 / 0.07)
    assert not state["visual.layer1.0.bn3.weight"].any()
    assert state["visual.bn3.weight"].all()
    assert not state["img_special_token"].any()
    for name, fan in {
        "text_projection": 128,
        "mlm_projection": 128,
        "visual.attnpool.q_proj.weight": 256,
    }.items():
        assert state[name].std() == pytest.approx(fan**-0.5, rel=0.05)


def test_training_steps_repeat_bit_for_bit(batch):
    def run() -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = pmc_clip.create_model("tiny")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            _loss(model, *batch).backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_training_lowers_the_loss(tiny, batch):
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = _loss(tiny, *batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("mlm", [True, False])
def test_every_parameter_gets_a_gradient(batch, mlm):
    images, tokens, labels = batch
    model = pmc_clip.create_model("tiny", mlm=mlm)
    _loss(model, images, tokens, labels if mlm else None).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_no_labelled_position_gives_a_zero_loss_that_reaches_every_parameter(tiny, batch):
    images, tokens, labels = batch
    output = tiny(images, tokens, torch.zeros_like(labels))
    assert output.mlm_loss == 0
    output.mlm_loss.backward()
    assert not tiny.mlm_projection.grad.any()
    assert not tiny.fusion_module.resblocks[0].attn.in_proj_weight.grad.any()


def test_a_batch_of_one_trains(tiny, batch):
    images, tokens, labels = (part[:1] for part in batch)
    loss = _loss(tiny, images, tokens, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert tiny.encode_image(images, normalize=True).norm().item() == pytest.approx(1, abs=1e-5)


def test_attention_pool_is_the_first_row_of_full_attention():
    torch.manual_seed(0)
    pool = AttentionPool(side=3, channels=32, heads=4, out_dim=6)
    for projection in (pool.q_proj, pool.k_proj, pool.v_proj):  # scores and biases that matter
        torch.nn.init.normal_(projection.weight, std=0.5)
        torch.nn.init.normal_(projection.bias)
    x = torch.randn(2, 32, 3, 3)
    found, expected = pool(x), all_queries(pool, x)[0]
    torch.testing.assert_close(found, expected)
    assert_same_gradients(found.square().sum(), expected.square().sum(), pool)


def test_wrong_shapes_are_named(tiny, batch):
    images, tokens, _ = batch
    with pytest.raises(
        pmc_clip.ModelError, match=r"images are \[4, 3, 32, 64\], this model reads \[B, 3, 64, 64\]"
    ):
        tiny.encode_image(images[:, :, :32])
    with pytest.raises(pmc_clip.ModelError, match=r"tokens are \[4, 80\], this model reads at most 77"):
        tiny.encode_text(torch.ones(4, 80, dtype=torch.int64))
    with pytest.raises(pmc_clip.ModelError, match=r"tokens are \[\d+\]: expected \[B, T\]"):
        tiny.encode_text(tokens[0])
    with pytest.raises(pmc_clip.ModelError, match=r"labels are \[4, 5\] for tokens \[4, \d+\]: make"):
        tiny(images, tokens, torch.zeros(4, 5, dtype=torch.int64))
    with pytest.raises(pmc_clip.ModelError, match="3 images and 4 captions: give one for each"):
        tiny(images[:3], tokens)
    with pytest.raises(pmc_clip.ModelError, match="features of 1 images and 4 captions: give one for each"):
        tiny.fuse(tokens, torch.zeros(1, 128))
    with pytest.raises(pmc_clip.ModelError, match=r"images are torch\.int64: give torch\.uint8, or floats"):
        tiny.encode_image(images.long())
    with pytest.raises(pmc_clip.ModelError, match="build it with mlm=True"):
        pmc_clip.create_model("tiny", mlm=False).fuse(tokens, torch.zeros(4, 128))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_reads_uint8_images(tiny, tiny_tokenizer, dtype):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    tokens = tiny_tokenizer(["Axial CT of the chest.", "x-ray"])
    tiny.eval()
    with torch.no_grad():
        exact = tiny.encode_image(images, normalize=True), tiny.encode_text(tokens, normalize=True)
        tiny.to(dtype)
        found = tiny.encode_image(images, normalize=True), tiny.encode_text(tokens, normalize=True)
        assert tiny.fuse(tokens, found[0]).dtype == dtype
    for half, full in zip(found, exact, strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), full, rtol=0, atol=5e-3)


@pytest.mark.parametrize("mask_padding", [True, False])
def test_no_captions_and_no_images_have_no_features(mask_padding):
    config = pmc_clip.load_model_config("tiny")
    config = replace(config, text_cfg=replace(config.text_cfg, mask_padding=mask_padding))
    model = pmc_clip.create_model(config).eval()
    assert model.encode_text(pmc_clip.get_tokenizer(config)([])).shape == (0, 128)
    assert model.encode_image(torch.zeros(0, 3, 64, 64, dtype=torch.uint8)).shape == (0, 128)
