"""A small training state to save."""

from collections.abc import Callable

import pytest
import torch

from pipeline.checkpoint import Checkpoint, DataState


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    """`make_checkpoint(step, size=8)`: every weight is the step's number; after step × 10 samples."""

    def make(step: int, size: int = 8) -> Checkpoint:
        weights = torch.full((size,), float(step))
        optimizer = {"state": {0: {"step": torch.tensor(float(step)), "exp_avg": weights + 0.5}}}
        data = DataState("train", "0" * 16, 0, 12)
        return Checkpoint({"weight": weights}, optimizer, step, step * 10, 10, data, {}, "t", {"mlm": False})

    return make
