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
def golden_model(
    golden_config: pmc_clip.ModelConfig, golden_state: dict[str, torch.Tensor]
) -> pmc_clip.PMCCLIP:
    model = pmc_clip.create_model(golden_config)
    pmc_clip.load_published_state_dict(model, golden_state)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> pmc_clip.Tokenizer:
    return pmc_clip.get_tokenizer("tiny")
