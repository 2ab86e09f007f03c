"""Builders that the model package's tests share."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pmc_clip


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden" / "tiny_modified"


@pytest.fixture(scope="session")
def golden_config(golden: Path) -> pmc_clip.ModelConfig:
    """The golden model's config, with the text tower's shape and vocabulary folder."""
    told = json.loads((golden / "config.json").read_text())
    told["model"]["text_cfg"] |= {"bert": told["bert"], "tokenizer": str(golden / "bert")}
    return pmc_clip.ModelConfig.from_dict(told["model"])


@pytest.fixture(scope="session")
def golden_captions(golden: Path) -> list[str]:
    return json.loads((golden / "config.json").read_text())["captions"]


@pytest.fixture(scope="session")
def golden_state(golden: Path) -> dict[str, torch.Tensor]:
    return pmc_clip.load_checkpoint_file(golden / "checkpoint.pt")["state_dict"]


@pytest.fixture(scope="session")
def expected(golden: Path) -> dict[str, Any]:
    return torch.load(golden / "expected.pt", weights_only=True)


@pytest.fixture
def golden_model(golden_config: pmc_clip.ModelConfig, golden: Path) -> pmc_clip.PMCCLIP:
    """The golden model as a user loads it, in evaluation mode."""
    model, _, _ = pmc_clip.create_model_and_transforms(golden_config, pretrained=golden / "checkpoint.pt")
    return model


@pytest.fixture
def unmoved_golden_model(golden_model: pmc_clip.PMCCLIP, expected: dict[str, Any]) -> pmc_clip.PMCCLIP:
    """The golden model with the BatchNorm statistics of the expected features and losses.

    After these, and before the expected gradients and the checkpoint, one more pass in training mode went
    over the images: each layer counts one batch, and its statistics moved a tenth towards that batch's. The
    published code, too, gives other image features from the checkpoint as it is (by up to 0.0385), and the
    expected ones only with this undone. A checkpoint that counts no batch is left as it is.
    """
    tower = golden_model.visual
    norms = [module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    saved = [(n.running_mean.clone(), n.running_var.clone(), int(n.num_batches_tracked)) for n in norms]
    for norm in norms:
        norm.momentum = 1.0  # so that one pass leaves the batch's own statistics
    with torch.no_grad():
        tower.train()(expected["images"])
    tower.eval()
    for norm, (mean, variance, batches) in zip(norms, saved, strict=True):
        moved = 0.1 * batches
        assert moved in (0.0, 0.1)
        norm.running_mean.copy_((mean - moved * norm.running_mean) / (1 - moved))
        norm.running_var.copy_((variance - moved * norm.running_var) / (1 - moved))
    return golden_model


@pytest.fixture(scope="session")
def tiny_tokenizer() -> pmc_clip.Tokenizer:
    return pmc_clip.get_tokenizer("tiny")
