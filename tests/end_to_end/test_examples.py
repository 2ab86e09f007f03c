"""The examples of docs/examples, run as a user runs them, on the real sample."""

import contextlib
import json
import random
import runpy
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shards import ShardDataset

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def example(monkeypatch, capfd):
    """Run an example in the test's own process: the lines that it prints."""

    def run_example(name: str, *arguments: object) -> list[str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capfd.readouterr().out.splitlines()

    return run_example


def test_the_webdataset_pipeline_is_the_same_with_any_number_of_workers(example, sample_shards):
    data = ("--data", sample_shards / "valid", "--batch-size", 4)
    alone = example("webdataset_pipeline.py", *data, "--workers", 0)
    assert [line[:7] for line in alone] == 7 * ["epoch 0"] + 6 * ["epoch 1"]
    assert all(": 4 samples" in line for line in alone)
    assert example("webdataset_pipeline.py", *data, "--workers", 2) == alone


class ResumableRun:
    """The resumable example in processes of their own, killed at some time."""

    def __init__(self, data: Path, folder: Path, environment: dict[str, str]) -> None:
        self.state, self.environment = folder / "state.json", environment
        self.flags = ["--data", str(data), "--state", str(self.state), "--epochs", "2"]

    def read_and_kill(self, after: int, processes: int, workers: int) -> list[str]:
        """Lines printed up to the last saved state, by position."""
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command += [str(EXAMPLES / "resumable_dataloader.py"), *self.flags, "--workers", str(workers)]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        begin = self.position
        lines = [process.stdout.readline() for _ in range(after)]
        family = psutil.Process(process.pid)
        for member in [family, *family.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        lines += process.stdout.readlines()
        process.wait()
        whole = [line.strip() for line in lines if line.endswith("\n")]
        used = [line for line in whole if begin <= position_of(line) < self.position]
        return sorted(used, key=position_of)

    @property
    def position(self) -> int:
        """Samples seen, as the saved state has it."""
        return json.loads(self.state.read_text())["position"] if self.state.exists() else 0


def position_of(line: str) -> int:
    return int(line.split()[0])


@pytest.mark.parametrize(
    "phases",  # (processes, workers) of each run; the last one is left to end
    [[(1, 2), (1, 1)], pytest.param([(2, 2), (1, 3), (3, 1), (1, 0)], marks=pytest.mark.slow)],
)
def test_a_killed_dataloader_goes_on_with_the_same_samples_and_pixels(
    example, launch, sample_shards, tmp_path, phases
):
    data = sample_shards / "train"
    undisturbed = example(
        "resumable_dataloader.py", "--data", data, "--state", tmp_path / "alone.json", "--workers", 0
    )
    assert len({line.split()[1] for line in undisturbed[:225]}) == 225

    run, choose = ResumableRun(data, tmp_path, launch[1]()), random.Random(len(phases))
    lines = []
    for processes, workers in phases[:-1]:
        lines += run.read_and_kill(choose.randrange(30, 120), processes, workers)
    assert run.position > 0
    lines += example("resumable_dataloader.py", *run.flags, "--workers", phases[-1][1])
    assert lines == undisturbed


RUN_OPEN_CLIP = """
import runpy, sys
import open_clip
from shards import ShardDataset

example, make = sys.argv.pop(1), ShardDataset.__init__

def make_noting(self, *arguments, transform, shuffle=True, **options):
    def noted(sample, position):
        if shuffle:
            print(position, sample.key, file=open("read.txt", "a"))
        return transform(sample, position)
    make(self, *arguments, transform=noted, shuffle=shuffle, **options)

ShardDataset.__init__ = make_noting
open_clip.add_model_config("few_weights.json")
runpy.run_path(example, run_name="__main__")
"""


@pytest.mark.slow
def test_open_clip_trains_in_the_exact_order_and_goes_on_where_it_was_stopped(
    sample_shards, launch, tmp_path
):
    """Its own training, of a model of few weights: the samples that it asked for are written down."""
    part = {"layers": 1, "width": 32}
    vision = {**part, "image_size": 32, "patch_size": 16, "head_width": 16}
    text = {**part, "context_length": 16, "vocab_size": 49408, "heads": 2}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "few_weights.json").write_text(json.dumps(model))
    (tmp_path / "run.py").write_text(RUN_OPEN_CLIP)
    flags = ["--train-data", sample_shards / "train", "--val-data", sample_shards / "valid", "--workers", 0]
    flags += ["--dataset-type", "webdataset", "--model", "few_weights", "--batch-size", 32]
    flags += ["--device", "cpu", "--val-frequency", 1]
    stopped = ["--name", "stopped", "--epochs", 1]
    resumed = ["--name", "resumed", "--epochs", 2, "--resume", "logs/stopped/checkpoints/epoch_1.pt"]
    for run_flags in (stopped, resumed):
        command = [sys.executable, "run.py", EXAMPLES / "open_clip_training.py", *flags, *run_flags]
        done = subprocess.run(
            [str(word) for word in command],
            cwd=tmp_path,
            env=launch[1](),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Eval Epoch" in done.stderr
    expected = ShardDataset(
        sample_shards / "train",
        batch_size=32,
        seed=0,
        samples=2 * 256,  # 225 samples are 8 batches
        transform=lambda sample, position: f"{position} {sample.key}",
    )
    assert (tmp_path / "read.txt").read_text().splitlines() == list(expected)
