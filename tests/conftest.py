"""Builders and fixtures that several test files share."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real input beside the project; its absence is a failure in CI and a skip elsewhere."""
    if not SHARED.is_dir():
        message = f"no real input at {SHARED}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return SHARED
