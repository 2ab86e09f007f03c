"""The contrastive loss: the same on two processes as on one; equal samples are never negatives."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F

import pmc_clip

WORLD = 2


def _inputs(batch: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(batch, 5, generator=generator),
        "y": torch.randn(batch, 6, generator=generator),
        "ids": torch.tensor([0, 1, 2, 1, 4, 0, 6, 2])[:batch],  # equal ids in one rank and across the two
        "image_weight": torch.randn(5, 4, generator=generator),
        "text_weight": torch.randn(6, 4, generator=generator),
        "log_scale": torch.tensor(1.5),
    }


PARAMETERS = ("image_weight", "text_weight", "log_scale")


def _loss_and_gradients(inputs: dict[str, torch.Tensor], own: slice) -> dict[str, torch.Tensor]:
    """The loss of the samples `own`, through two linear models, and the parameters' gradients."""
    weights = {name: inputs[name].clone().requires_grad_() for name in PARAMETERS}
    images = F.normalize(inputs["x"][own] @ weights["image_weight"], dim=-1)
    texts = F.normalize(inputs["y"][own] @ weights["text_weight"], dim=-1)
    loss = pmc_clip.contrastive_loss(images, texts, weights["log_scale"].exp(), inputs["ids"][own])
    loss.backward()
    return {"loss": loss.detach()} | {name: weights[name].grad for name in PARAMETERS}


def _one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    local = 8 // WORLD
    found = _loss_and_gradients(_inputs(), slice(rank * local, (rank + 1) * local))
    for value in found.values():  # as DistributedDataParallel does with gradients
        dist.all_reduce(value)
        value /= WORLD
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    multiprocessing.spawn(_one_rank, args=(str(tmp_path),), nprocs=WORLD)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    expected = _loss_and_gradients(_inputs(), slice(None))
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_one_process_gives_the_cross_entropy_of_clip():
    generator = torch.Generator().manual_seed(1)
    images, texts = (F.normalize(torch.randn(6, 4, generator=generator), dim=-1) for _ in range(2))
    logits = 10 * images @ texts.T
    expected = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    found = pmc_clip.contrastive_loss(images, texts, torch.tensor(10.0), torch.arange(6))
    torch.testing.assert_close(found, expected)


def test_equal_samples_are_never_negatives():
    generator = torch.Generator().manual_seed(2)
    images, texts = (F.normalize(torch.randn(3, 4, generator=generator), dim=-1) for _ in range(2))
    twice = [0, 1, 2, 0]
    ids = torch.tensor([7, 8, 9, 7])
    scale = torch.tensor(5.0)
    logits = scale * images[twice] @ texts[twice].T
    logits[0, 3] = logits[3, 0] = -torch.inf
    expected = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    found = pmc_clip.contrastive_loss(images[twice], texts[twice], scale, ids)
    torch.testing.assert_close(found, expected)
    assert found < pmc_clip.contrastive_loss(images[twice], texts[twice], scale)


def test_half_precision_features_are_compared_in_float32():
    features = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(3)), dim=-1).bfloat16()
    expected = pmc_clip.contrastive_loss(features.float(), features.float(), torch.tensor(100.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pmc_clip.contrastive_loss(features, features, torch.tensor(100.0))
    assert found.dtype == torch.float32
    assert found == expected


def test_a_batch_of_one_has_no_loss():
    one = F.normalize(torch.ones(1, 4), dim=-1).requires_grad_()
    loss = pmc_clip.contrastive_loss(one, one, torch.tensor(10.0), torch.tensor([3]))
    loss.backward()
    assert loss.item() == pytest.approx(0)
    assert torch.isfinite(one.grad).all()
