"""What is made for a GPU gives there what the CPU gives; on a CPU the same tests compare it with itself."""

from collections.abc import Iterator

import pytest
import torch

import pmc_clip
from pmc_clip.text_layout import TextLayout
from tests.pmc_clip.test_savings import CAPTIONS, Batch, Losses, build_model, losses, make_batch

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.fixture(autouse=True)
def float32_in_full() -> Iterator[None]:
    """Convolutions of a GPU would round float32 to ten bits, unless told not to."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def on(device: str, batch: Batch, *, mask_padding: bool) -> tuple[torch.Tensor, torch.Tensor, TextLayout]:
    """A batch on a device, copied as training does: from pinned memory, without waiting, the layout made
    ahead.
    """
    images, tokens, labels = batch
    layout = TextLayout.of(tokens, labels, mask_padding=mask_padding)
    if device == "cuda":
        images, tokens = images.pin_memory(), tokens.pin_memory()
        layout = TextLayout(*(None if part is None else part.pin_memory() for part in layout))
    to = torch.device(device)
    return images.to(to, non_blocking=True), tokens.to(to, non_blocking=True), layout.to(to)


def gradients(model: pmc_clip.PMCCLIP, found: Losses) -> dict[str, torch.Tensor]:
    """Of the losses' sum, on the CPU."""
    given = torch.autograd.grad(sum(found), tuple(model.parameters()))
    return {name: value.cpu() for (name, _), value in zip(model.named_parameters(), given, strict=True)}


def assert_near(
    found: Losses, expected: Losses, own: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> None:
    """Losses, and gradients by parameter, agree to float32 as devices and compilers order its sums."""
    for loss, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(loss.cpu(), theirs.cpu(), rtol=1e-4, atol=1e-4)
    for name, gradient in own.items():
        tolerance = 1e-3 * float(wanted[name].abs().max()) + 1e-5
        torch.testing.assert_close(
            gradient, wanted[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask_padding", [True, False])
def test_a_device_gives_the_losses_and_gradients_of_the_cpu(device, mask_padding):
    model = build_model(mask_padding=mask_padding)
    batch = make_batch(model)
    expected = losses(model, *batch)
    wanted = gradients(model, expected)
    model.to(device, memory_format=torch.channels_last)
    images, tokens, layout = on(device, batch, mask_padding=mask_padding)
    found = losses(model, images, tokens, layout=layout)
    assert_near(found, expected, gradients(model, found), wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_normalises_pixels_as_the_cpu_does(device):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    found = pmc_clip.normalize(pixels.to(device))
    assert found.device.type == device
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu(), pmc_clip.normalize(pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_on_a_device_stays_near_float32_and_learns(device):
    model = build_model(mask_padding=True)
    batch = make_batch(model)
    exact = [float(loss.detach()) for loss in losses(model, *batch)]
    model.to(device, memory_format=torch.channels_last)
    images, tokens, layout = on(device, batch, mask_padding=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    totals = []
    for _ in range(4):
        with torch.autocast(device, torch.bfloat16):
            output = model(images, tokens, layout=layout)
        assert output.mlm_loss.dtype == torch.float32
        match = pmc_clip.contrastive_loss(output.image_features, output.text_features, output.logit_scale)
        totals.append((float(match.detach()), float(output.mlm_loss.detach())))
        (match + output.mlm_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert totals[0] == pytest.approx(exact, rel=0.03)
    assert sum(totals[-1]) < sum(totals[0])


def test_a_step_reads_no_value_of_the_device():
    """Tensors without values, as a GPU's are until it has caught up, are enough for both ways."""
    model = build_model(mask_padding=True)
    images, tokens, layout = on("meta", make_batch(model), mask_padding=True)
    output = model.to("meta")(images, tokens, layout=layout)
    ((output.image_features * output.text_features).sum() + output.mlm_loss).backward()
    assert all(
        parameter.grad is not None for name, parameter in model.named_parameters() if "logit" not in name
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_never_waits_for_the_gpu():
    model = build_model(mask_padding=True).to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = make_batch(model)

    def step() -> None:
        images, tokens, layout = on("cuda", batch, mask_padding=True)
        with torch.autocast("cuda", torch.bfloat16):
            output = model(images, tokens, layout=layout)
        ids = torch.arange(len(images), device="cuda")
        match = pmc_clip.contrastive_loss(
            output.image_features, output.text_features, output.logit_scale, ids, caption_ids=ids
        )
        pmc_clip.LossWeights(0.5, 0.5).total(match, output.mlm_loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the first makes the optimiser's state and whatever libraries set up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_model_gives_the_losses_and_gradients_of_the_plain_one(device):
    model = build_model(mask_padding=True).to(device, memory_format=torch.channels_last)
    torch._dynamo.reset()
    compiled = torch.compile(model)
    for captions in (CAPTIONS, (*CAPTIONS[:3], "CT " * 99)):
        images, tokens, layout = on(device, make_batch(model, captions), mask_padding=True)
        for part in (tokens, *layout):
            torch._dynamo.maybe_mark_dynamic(part, part.ndim - 1)
        expected = losses(model, images, tokens, layout=layout)
        wanted = gradients(model, expected)
        found = losses(compiled, images, tokens, layout=layout)
        assert_near(found, expected, gradients(model, found), wanted)
