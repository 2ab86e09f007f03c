"""The installed package, as a user's own folder sees it."""

import importlib.metadata
import os
import subprocess
import sys

import pytest


@pytest.fixture
def python(tmp_path):
    """Run the installed package from a folder that holds data called as the package is."""
    try:
        importlib.metadata.distribution("pmc-clip-stream")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here ('make test' installs it)")
    for folder in ("shards/train", "runs"):
        (tmp_path / folder).mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_data_called_shards_does_not_hide_the_package(python):
    assert "--samples-per-shard" in python("-m", "pipeline.shard", "--help")
    assert python("-c", "import shards; print(shards.open_dataset.__name__)").strip() == "open_dataset"
