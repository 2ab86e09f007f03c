"""Training started by Open MPI's mpirun."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_mpirun_is_one_run_of_all_processes(
    need, launch, sample_shards, training_flags, assert_undisturbed, tmp_path
):
    need("training under Open MPI", "mpirun")
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    mpirun += ["--mca", "plm", "isolated"]  # or it looks for ssh, which it does not need here
    flags = ["--train-data", sample_shards / "train", "--mlm", *training_flags, "--name", "mpi"]
    command = [*mpirun, sys.executable, "-m", "pipeline.train", *flags]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=tmp_path,
        env=launch[1](CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_undisturbed(tmp_path / "runs" / "mpi")
