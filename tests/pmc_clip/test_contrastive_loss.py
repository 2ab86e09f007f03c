"""The losses of features in one process; tests/pmc_clip/test_losses_across_processes.py has more of them."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import pmc_clip
from tests import loss_cases


@pytest.mark.parametrize("case", loss_cases.CASES)
def test_loss_and_gradients_are_those_of_the_formula(case):
    loss, in_full = loss_cases.CASES[case]
    found = loss_cases.loss_and_gradients(loss, slice(0, loss_cases.BATCH))
    expected = loss_cases.loss_and_gradients(in_full, slice(None))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sample_ids", "caption_ids"])
def test_samples_with_equal_ids_are_never_negatives(name):
    generator = torch.Generator().manual_seed(2)
    images, texts = (F.normalize(torch.randn(3, 4, generator=generator), dim=-1) for _ in range(2))
    twice = [0, 1, 2, 0]
    ids = torch.tensor([7, 8, 9, 7])
    scale = torch.tensor(5.0)
    logits = scale * images[twice] @ texts[twice].T
    logits[0, 3] = logits[3, 0] = -torch.inf
    expected = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    found = pmc_clip.contrastive_loss(images[twice], texts[twice], scale, **{name: ids})
    torch.testing.assert_close(found, expected)
    assert found < pmc_clip.contrastive_loss(images[twice], texts[twice], scale)


def test_half_precision_features_are_compared_in_float32():
    features = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(3)), dim=-1).bfloat16()
    scale, bias = torch.tensor(100.0), torch.tensor(-10.0)

    def losses(features: torch.Tensor) -> list[torch.Tensor]:
        return [
            pmc_clip.contrastive_loss(features, features, scale),
            pmc_clip.contrastive_loss(features, features, scale, chunk=2),
            pmc_clip.siglip_loss(features, features, scale, bias),
        ]

    expected = losses(features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses(features)
    for value, same in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert value == same


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_batch_of_one_has_no_contrastive_loss(chunk):
    one = F.normalize(torch.ones(1, 4), dim=-1).requires_grad_()
    loss = pmc_clip.contrastive_loss(one, one, torch.tensor(10.0), torch.tensor([3]), chunk=chunk)
    loss.backward()
    assert loss.item() == pytest.approx(0)
    assert torch.isfinite(one.grad).all()


def test_a_batch_of_one_is_asked_one_question_by_the_sigmoid_loss():
    one = F.normalize(torch.ones(1, 4), dim=-1).requires_grad_()
    loss = pmc_clip.siglip_loss(one, one, torch.tensor(10.0), torch.tensor(-10.0), torch.tensor([3]))
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    assert torch.isfinite(one.grad).all()


def test_sigmoid_loss_stays_finite_at_certain_answers():
    features = torch.eye(3).requires_grad_()
    loss = pmc_clip.siglip_loss(features, features, torch.tensor(1000.0), torch.tensor(-500.0))
    loss.backward()
    assert loss.item() == pytest.approx(0)
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_chunk_without_rows_is_refused(chunk):
    features = torch.eye(3)
    with pytest.raises(pmc_clip.ModelError, match=f"chunk is {chunk}"):
        pmc_clip.contrastive_loss(features, features, torch.tensor(1.0), chunk=chunk)


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return made


def _most_elements(batch: int, sigmoid: bool, chunk: int | None) -> tuple[int, int]:
    """Of any tensor that is made on the way forward and back, and of any that is kept for the way back."""
    draw = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(batch, 4, generator=draw).requires_grad_() for _ in range(2))
    scale, bias, ids = torch.tensor(2.0).requires_grad_(), torch.tensor(-2.0), torch.arange(batch) // 2
    kept = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept.append(value.numel())
        return value

    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            if sigmoid:
                loss = pmc_clip.siglip_loss(images, texts, scale, bias, ids, caption_ids=ids, chunk=chunk)
            else:
                loss = pmc_clip.contrastive_loss(images, texts, scale, ids, caption_ids=ids, chunk=chunk)
        loss.backward()
    return largest.elements, max(kept, default=0)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_chunks_hold_only_their_rows_of_logits_forward_and_backward(sigmoid, monkeypatch):
    features = 2 * 64 * 4
    assert _most_elements(64, sigmoid, None) == (64 * 64, 64 * 64)
    for chunk in (16, None):
        made, kept = _most_elements(64, sigmoid, chunk)
        assert made == 16 * 64
        assert kept <= features
        monkeypatch.setattr("pmc_clip.losses.LOGITS_AT_ONCE", 16 * 64)  # so that 64 pairs are very many
