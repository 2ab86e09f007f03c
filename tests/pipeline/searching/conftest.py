"""What the tests of searching share: embeddings of 30 figures, made once."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.conftest import command_environment
from tests.figures import write_figures


@dataclass(frozen=True)
class Embedded:
    """Embeddings, and what they were made of."""

    embeddings: Path
    checkpoint: Path
    figures: str


@pytest.fixture(scope="session")
def embedded(tmp_path_factory) -> Embedded:
    folder = tmp_path_factory.mktemp("search")
    checkpoint = write_checkpoint(folder / "run" / "checkpoints")
    figures = write_figures(folder / "figures", 30)
    flags = ["--data", figures, "--checkpoint", checkpoint, "--out", folder / "embeddings"]
    flags += ["--samples-per-piece", 8]
    subprocess.run(
        [sys.executable, "-m", "pipeline.embed", *map(str, flags)],
        env=command_environment(),
        check=True,
        capture_output=True,
    )
    return Embedded(folder / "embeddings", checkpoint, figures)
