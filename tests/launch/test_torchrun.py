"""launch/torchrun.sh: the command that it makes, with a stand-in for `torchrun` that prints it."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "torchrun.sh"


@pytest.fixture
def launch_script(tmp_path):
    """Run the script on a machine with a number of GPUs: (exit code, torchrun's arguments, errors)."""

    def program(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def launch(*arguments: str, gpus: int | None = None, **variables: str) -> tuple[int, list[str], str]:
        program("torchrun", 'printf "%s\\n" "$@"')
        if gpus is None:
            program("nvidia-smi", "exit 127")  # as where there is none
        else:
            program("nvidia-smi", "\n".join(f"echo 'GPU {n}: a GPU'" for n in range(gpus)))
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return launch


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize(("gpus", "processes"), [(None, "1"), (0, "1"), (8, "8")])
def test_one_process_for_each_gpu_and_one_without_any(launch_script, gpus, processes):
    code, words, errors = launch_script(gpus=gpus)
    assert (code, errors) == (0, "")
    assert value(words, "--nproc_per_node") == processes


def test_flags_reach_training_as_they_were_given(launch_script):
    _, words, _ = launch_script("--epochs", "30", "--logs", "my runs", TRAIN_DATA="s3://b/train", VAL_DATA="")
    ours = words[words.index("--") + 1 :]
    assert ours[0] == "pipeline.train"
    assert value(ours, "--train-data") == "s3://b/train"
    assert "--val-data" not in ours
    assert ours[-4:] == ["--epochs", "30", "--logs", "my runs"]


def test_several_machines_need_an_address_that_all_of_them_reach(launch_script):
    code, words, errors = launch_script(NODES="2")
    assert (code, words) == (2, [])
    assert "set RENDEZVOUS=HOST:29500" in errors
    assert launch_script(NODES="2", RENDEZVOUS="first:29500")[0] == 0
