"""Counting operations: what they are, and that it leaves no trace."""

import pytest
import torch

from pipeline.model_input import batch_parts
from pipeline.training.flops import count_flops, model_flops, peak_tflops
from pipeline.training.outline import outline_of
from pmc_clip import create_model
from pmc_clip.locking import lock_tower
from tests.training_cases import BATCH, make_batch, make_trainer


def test_a_product_of_matrices_has_two_operations_for_each_of_its_terms():
    left, right = torch.zeros(3, 5), torch.zeros(5, 7)
    assert count_flops(lambda: left @ right) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("options", [{}, {"parts": 2}, {"grad_checkpointing": True}], ids=str)
def test_counting_changes_nothing_and_what_saves_memory_does_not_count(options):
    counted, plain = make_trainer(**options), make_trainer(**options)
    flops = counted.flops_per_sample(make_batch(0))
    assert flops == pytest.approx(make_trainer().flops_per_sample(make_batch(0)), rel=0.15)
    for trainer in (counted, plain):
        trainer.train_step(make_batch(1))
    ours, theirs = counted.model.state_dict(), plain.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_way_back_and_locked_towers_are_counted_as_they_are():
    whole = make_trainer().flops_per_sample(make_batch(0))
    model = create_model("tiny")
    image = torch.zeros(1, 3, 64, 64)
    ahead = count_flops(lambda: model.encode_image(image))
    lock_tower(model, "visual")
    (part,) = batch_parts(make_batch(0), torch.device("cpu"), mask_padding=model.config.text_cfg.mask_padding)
    assert whole - model_flops(outline_of(model), part) / BATCH == pytest.approx(2 * ahead, rel=0.1)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA L40S", 362.0), ("Arc", None)],
)
def test_peaks_are_known_by_name(name, peak):
    assert peak_tflops(name, half=True) == peak
    assert peak_tflops(name, half=False) == (peak and peak / 2)
