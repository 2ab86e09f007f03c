"""What tests that start trainings in unusual ways share: the training, its outcome, a SLURM cluster."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.launch.slurm_cluster import PROGRAMS, Slurm, one_machine_cluster

STEPS = 20


@pytest.fixture(scope="session")
def need() -> Callable[..., None]:
    """`need("what for", "program", …)`: where one is not installed, fail in CI and skip elsewhere."""

    def check(purpose: str, *programs: str) -> None:
        missing = [program for program in programs if not shutil.which(program)]
        if missing:
            message = f"{purpose}: {', '.join(missing)} not installed (.ci/run installs what tests need)"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)

    return check


@pytest.fixture(scope="session")
def slurm(need, launch, tmp_path_factory) -> Iterator[Slurm]:
    """A SLURM cluster of two nodes, both of them this machine."""
    need("a SLURM cluster on this machine", *PROGRAMS)
    here = Path(sys.executable).parent  # where `python` and `torchrun` are
    environment = launch[1](PATH=f"{here}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="")
    with one_machine_cluster(tmp_path_factory.mktemp("slurm"), environment) as cluster:
        yield cluster


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The final weights of a run."""
    return torch.load(run / "checkpoints" / f"step-{STEPS:08d}.pt", weights_only=True)["state_dict"]


@pytest.fixture(scope="session")
def training_flags() -> list[str]:
    """Of a run that ends equal to the bit on two processes, however these were started or interrupted."""
    flags = ["--model", "tiny", "--global-batch-size", "8", "--epochs", "2", "--steps", str(STEPS)]
    return [*flags, "--save-every", "4", "--log-every", "5", "--seed", "1"]


@pytest.fixture(scope="session")
def undisturbed(sample_shards, training_flags, launch, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The final weights of such a run, started by torchrun and left alone."""
    launcher, environment = launch
    folder = tmp_path_factory.mktemp("undisturbed")
    flags = ["--train-data", sample_shards / "train", "--mlm", *training_flags]
    command = [*launcher(2, "train"), *flags, "--logs", folder, "--name", "whole"]
    done = subprocess.run(
        [str(word) for word in command],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return weights(folder / "whole")


@pytest.fixture(scope="session")
def assert_undisturbed(undisturbed) -> Callable[[Path], None]:
    """`assert_undisturbed(run)`: the run's final weights are those of the undisturbed one, to the bit."""

    def check(run: Path) -> None:
        found = weights(run)
        assert found.keys() == undisturbed.keys()
        assert [name for name in found if not torch.equal(found[name], undisturbed[name])] == []

    return check
