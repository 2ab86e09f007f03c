"""Builders and fixtures that several test files share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run; how long one takes depends on the machine, so there is no deadline.
settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("deterministic")

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
