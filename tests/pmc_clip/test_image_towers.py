"""Image towers: the two ResNets and timm's models compute what they should, under the published names."""

import json
import sys
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F

import pmc_clip
from pmc_clip.image_tower import build_image_tower

EMBED_DIM = 48
RESNETS = [
    pmc_clip.VisionConfig(image_size=64, layers=(1, 2, 1, 1), width=8, backbone="ModifiedRN50"),
    pmc_clip.VisionConfig(image_size=64, layers=(1, 2, 1, 1), width=8, backbone="RN50"),
]


def timm_config(name: str, **fields) -> pmc_clip.VisionConfig:
    return pmc_clip.VisionConfig(**{"image_size": 64, "timm_model_name": name, **fields})


TIMM = [
    timm_config("vit_tiny_patch16_224"),
    timm_config("convnext_atto"),
    timm_config("convnext_atto", timm_pool="abs_attn", timm_proj=""),
    timm_config("convnext_atto", timm_pool="rot_attn", timm_proj="mlp"),
]


def _name(vision: pmc_clip.VisionConfig) -> str:
    return (
        vision.backbone if vision.timm_model_name is None else f"{vision.timm_model_name}-{vision.timm_pool}"
    )


def build(vision: pmc_clip.VisionConfig, embed_dim: int = EMBED_DIM, **settings) -> torch.nn.Module:
    if vision.timm_model_name is not None:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    return build_image_tower(vision, embed_dim, **settings)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def awake():
    """Gives BatchNorm statistics and scales as training does, so that no block is the identity."""

    def wake(tower: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(2)
        for module in tower.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for values in (module.weight, module.bias, module.running_mean):
                    values.data.normal_(0.5, 0.2, generator=generator)
        return tower.eval()

    return wake


def _published_plain_resnet(state: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The published plain ResNet in evaluation, spelt out over its parameters' names."""

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])

    def block(name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        out = normed(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"])).relu()
        out = normed(f"{name}.bn2", F.conv2d(out, state[f"{name}.conv2.weight"], padding=1)).relu()
        out = normed(f"{name}.bn3", F.conv2d(F.avg_pool2d(out, stride), state[f"{name}.conv3.weight"]))
        if f"{name}.downsample.0.weight" in state:
            x = F.conv2d(F.avg_pool2d(x, stride), state[f"{name}.downsample.0.weight"])
            x = normed(f"{name}.downsample.1", x)
        return (out + x).relu()

    x = normed("bn1", F.conv2d(x, state["conv1.weight"], stride=2, padding=1)).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for layer in range(1, 5):
        blocks = {name.split(".")[1] for name in state if name.startswith(f"layer{layer}.")}
        for index in range(len(blocks)):
            x = block(f"layer{layer}.{index}", x, 2 if layer > 1 and index == 0 else 1)
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), state["head.weight"], state["head.bias"])


def test_plain_resnet_computes_what_the_published_one_does(images, awake):
    tower = awake(build(RESNETS[1]))
    expected = _published_plain_resnet(tower.state_dict(), images)
    torch.testing.assert_close(tower(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [8, 16, 64])
def test_plain_resnet_works_at_any_width(width):
    vision = pmc_clip.VisionConfig(image_size=32, layers=(1, 1, 1, 1), width=width, backbone="RN50")
    tower = build(vision).eval()
    assert tower.head.weight.shape == (EMBED_DIM, width * 32)
    assert tower(torch.zeros(2, 3, 32, 32)).shape == (2, EMBED_DIM)


@pytest.mark.parametrize("vision", RESNETS + TIMM, ids=_name)
def test_channels_last_changes_nothing_but_rounding(vision, images, awake):
    tower = awake(build(vision))
    expected = tower(images)
    last = tower.to(memory_format=torch.channels_last)
    given = last(images.contiguous(memory_format=torch.channels_last))
    assert given.shape == (3, EMBED_DIM)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vision", RESNETS + TIMM, ids=_name)
def test_every_parameter_gets_a_gradient(vision, images):
    tower = build(vision)
    assert all(module.training for module in tower.modules())
    tower(images).square().mean().backward()
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("vision", RESNETS + TIMM, ids=_name)
def test_one_seed_gives_one_tower(vision):
    one, other = build(vision).state_dict(), build(vision).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_vit_averages_its_patches_and_projects_them(images):
    tower = build(timm_config("vit_tiny_patch16_224")).eval()
    states = tower.trunk.forward_features(images)  # [3, 1 + 4 * 4, 192], a class token first
    assert states.shape == (3, 17, 192)
    expected = F.linear(states[:, 1:].mean(1), tower.head.proj.weight, tower.head.proj.bias)
    torch.testing.assert_close(tower(images), expected, atol=1e-5, rtol=1e-5)


def test_timm_pool_is_the_models_own_way_where_it_is_left_empty(images):
    tower = build(timm_config("vit_tiny_patch16_224", timm_pool="")).eval()
    token = tower.trunk.forward_features(images)[:, 0]
    torch.testing.assert_close(tower(images), tower.head(token), atol=1e-5, rtol=1e-5)


def test_convnext_trunk_is_timms_under_the_published_names(images):
    timm = pytest.importorskip("timm")
    tower = build(timm_config("convnext_atto", image_size=96)).eval()
    state = tower.state_dict()
    head = {name: state.pop(name) for name in list(state) if not name.startswith("trunk.")}
    assert {name: list(tensor.shape) for name, tensor in head.items()} == {
        "head.proj.weight": [EMBED_DIM, 320],
        "head.proj.bias": [EMBED_DIM],
    }
    trunk = timm.create_model("convnext_atto", num_classes=0).eval()
    trunk.load_state_dict({name.removeprefix("trunk."): tensor for name, tensor in state.items()})
    images = F.interpolate(images, size=96)
    torch.testing.assert_close(tower(images), tower.head(trunk(images)))


def test_projections():
    perceptron = build(timm_config("vit_tiny_patch16_224", timm_proj="mlp")).head
    assert {name: list(tensor.shape) for name, tensor in perceptron.state_dict().items()} == {
        "mlp.fc1.weight": [2 * EMBED_DIM, 192],
        "mlp.fc1.bias": [2 * EMBED_DIM],
        "mlp.fc2.weight": [EMBED_DIM, 2 * EMBED_DIM],
        "mlp.fc2.bias": [EMBED_DIM],
    }
    bare = timm_config("vit_tiny_patch16_224", timm_proj="none")
    assert build(bare, embed_dim=192).head.state_dict() == {}
    with pytest.raises(
        pmc_clip.ModelError, match=r"timm_proj is 'none', but .* 192 features and embed_dim is 48"
    ):
        build(bare)


def test_attention_pool_follows_the_image_size():
    tower = build(timm_config("convnext_atto", image_size=96, timm_pool="abs_attn", timm_proj=""))
    assert tower.head.pool.pos_embed.shape == (1 + 3 * 3, 320)


@pytest.mark.parametrize(
    ("vision", "told"),
    [
        (
            timm_config("vit_tinny_patch16_224"),
            r"no model 'vit_tinny_patch16_224'.*did you mean vit_tiny_patch16_",
        ),
        (timm_config("zzzzzzz"), r"no model 'zzzzzzz'.*list_models"),
        (timm_config("vit_tiny_patch16_224.nosuchtag"), "cannot build 'vit_tiny_patch16_224.nosuchtag'"),
        (timm_config("levit_128s", image_size=100), "does not read 100 px images: change"),
        (timm_config("vit_tiny_patch16_224", image_size=100), "image_size is 100: .* patches of 16 px"),
        (
            timm_config("vit_tiny_patch16_224", timm_pool="median"),
            "cannot pool as vision_cfg.timm_pool 'median'",
        ),
        (timm_config("vit_tiny_patch16_224", timm_pool="abs_attn"), r"needs a feature map .*'B', 17, 192"),
        (timm_config("convnext_femto", timm_pool="token"), "timm_pool 'token'"),
    ],
    ids=lambda value: _name(value) if isinstance(value, pmc_clip.VisionConfig) else "",
)
def test_what_timm_cannot_do_is_told_with_a_remedy(vision, told):
    with pytest.raises(pmc_clip.ModelError, match=told):
        build(vision)


def test_missing_timm_is_told_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # what an absent package looks like to import
    with pytest.raises(pmc_clip.ModelError, match=r"pip install 'pmc-clip-stream\[timm\]'"):
        build_image_tower(timm_config("convnext_atto"), EMBED_DIM)


@pytest.mark.parametrize("vision", RESNETS, ids=_name)
def test_resnets_have_no_pretrained_weights_to_read(vision):
    with pytest.raises(
        pmc_clip.ModelError, match=f"no pretrained image weights for .* {vision.backbone}: .*timm"
    ):
        build_image_tower(vision, EMBED_DIM, pretrained=True)


@pytest.fixture
def saved_timm_model(tmp_path) -> str:
    """A folder in timm's form with weights, under the name that timm has for it."""
    timm = pytest.importorskip("timm")
    safetensors = pytest.importorskip("safetensors.torch")
    model = timm.create_model("convnext_atto", num_classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    told = {"architecture": "convnext_atto", "num_classes": 10, "pretrained_cfg": {"num_classes": 10}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    return f"local-dir:{tmp_path}"


@pytest.mark.parametrize(
    ("in_config", "asked", "read"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_pretrained_weights_are_read_when_asked_for(saved_timm_model, in_config, asked, read):
    vision = timm_config(saved_timm_model, timm_model_pretrained=in_config)
    stem = build(vision, pretrained=asked).trunk.stem[0].weight
    assert bool((stem == 0.25).all()) == read


def test_weights_that_cannot_be_read_are_told_with_a_remedy(saved_timm_model, tmp_path):
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(pmc_clip.ModelError, match=r"cannot build .*: connect .*pretrained_image=False"):
        build(timm_config(saved_timm_model), pretrained=True)


@pytest.mark.parametrize("vision", [RESNETS[1], timm_config("vit_tiny_patch16_224")], ids=_name)
def test_whole_model_trains_with_any_tower(vision):
    if vision.timm_model_name is not None:
        pytest.importorskip("timm")
    settings = pmc_clip.load_model_config("tiny").to_dict()
    tower = {"image_size": 64, "backbone": vision.backbone, "timm_model_name": vision.timm_model_name}
    settings["vision_cfg"] = tower | ({"width": 8} if vision.timm_model_name is None else {})
    torch.manual_seed(0)
    model = pmc_clip.create_model(pmc_clip.ModelConfig.from_dict(settings))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    tokens = torch.tensor([[2, 30, 31, 3], [2, 40, 3, 0]])
    output = model(images, tokens, torch.tensor([[0, 30, 0, 0], [0, 0, 0, 0]]))
    assert output.image_features.shape == output.text_features.shape == (2, 128)
    (output.mlm_loss + (output.image_features * output.text_features).sum()).backward()
    assert all(parameter.grad is not None for parameter in model.visual.parameters())
