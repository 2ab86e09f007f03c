"""What the tests of embedding and searching share: figures, a checkpoint, and embeddings of these."""

from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.figures import write_figures


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """The `latest` of a run of the tiny model, untrained."""
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints")


@pytest.fixture(scope="session")
def figures(tmp_path_factory) -> str:
    """A data set of 30 figures."""
    return write_figures(tmp_path_factory.mktemp("data") / "figures", 30)
