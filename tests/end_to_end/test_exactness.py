"""Exactness on real processes: the same samples on any number of them, the same weights after any
interruption.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint import Checkpoint
from pipeline.data import open_training_data
from pipeline.topology import Topology

STEPS, GLOBAL_BATCH = 16, 24
# What holds a state of its own, or computes a step in another way.
EVERYTHING = ["--precision", "fp16", "--ema", 0.9, "--accum", 2, "--grad-checkpointing", "--grad-clip", 1.0]


@pytest.fixture(scope="module")
def keys_alone(sample_shards, stream, tmp_path_factory):
    """Two and a half epochs as one process sees them: position, key and pixel checksum of every sample."""
    return stream(tmp_path_factory.mktemp("keys") / "alone.tsv", 24, 1, "--batches", 24)


@pytest.fixture(scope="module")
def stream(sample_shards, launch):
    """Run `pipeline.stream` on the real sample: the lines that it wrote to `--keys`."""
    launcher, environment = launch

    def run_stream(file: Path, batch: int, processes: int, *flags: object, **changes: str) -> list[str]:
        command = [*launcher(processes, "stream"), *stream_flags(sample_shards, file, batch), *flags]
        subprocess.run(
            [str(part) for part in command], check=True, capture_output=True, env=environment(**changes)
        )
        return file.read_text().splitlines()

    return run_stream


def stream_flags(shards: Path, file: Path, batch: int) -> list[object]:
    """The real sample, small; a later --data takes the place of this one."""
    flags = ["--data", shards / "train", "--batch-size", batch, "--image-size", 64, "--lanes", 12]
    return [*flags, "--keys", file, "--checksums"]


@pytest.mark.parametrize(
    "processes",
    [3, *(pytest.param(processes, marks=pytest.mark.slow) for processes in (2, 4, 6))],
)
def test_keys_and_pixels_are_the_same_on_any_number_of_processes(stream, tmp_path, keys_alone, processes):
    together = stream(tmp_path / "k.tsv", 24 // processes, processes, "--batches", 24)
    assert together == keys_alone
    assert len({line.split("\t")[1] for line in keys_alone[:225]}) == 225


def test_one_rank_without_a_process_group_sees_its_share(stream, tmp_path, keys_alone):
    own = stream(tmp_path / "k.tsv", 8, 1, "--batches", 24, "--workers", 3, RANK="2", WORLD_SIZE="3")
    assert own == [line for line in keys_alone if int(line.split("\t")[0]) % 3 == 2]


def test_starting_anywhere_goes_on_as_if_nothing_had_happened(stream, tmp_path, keys_alone):
    late = stream(
        tmp_path / "k.tsv", 16, 1, "--start", 211, "--batches", 22, "--prefetch-bytes", 0, "--workers", 5
    )
    assert late == keys_alone[211 : 211 + 22 * 16]


@pytest.fixture
def killed_stream(launch, sample_shards, tmp_path):
    """Run processes of `pipeline.stream` without end, kill all of them with SIGKILL after some batches, and
    return the lines of the global batches that all of them had seen.
    """
    launcher, environment = launch

    def run_and_kill(start: int, processes: int, batches: int) -> list[str]:
        files = [tmp_path / f"{start}-{rank}.tsv" for rank in range(processes)]
        command = [*launcher(1, "stream"), "--start", start, "--batches", 100_000]
        jobs = [
            subprocess.Popen(
                [str(part) for part in [*command, *stream_flags(sample_shards, file, 24 // processes)]],
                env=environment(RANK=str(rank), WORLD_SIZE=str(processes)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank, file in enumerate(files)
        ]
        try:
            deadline = time.monotonic() + 120
            while min(seen_batches(file, processes) for file in files) < batches:
                assert time.monotonic() < deadline
                assert all(job.poll() is None for job in jobs)
                time.sleep(0.002)
        finally:
            for job in jobs:
                job.kill()
                job.wait()
        seen = min(seen_batches(file, processes) for file in files)
        lines = [line for file in files for line in file.read_text().splitlines()[: seen * 24 // processes]]
        return sorted(lines, key=position_of)

    return run_and_kill


def seen_batches(file: Path, processes: int) -> int:
    """Global batches of which a process wrote all of its lines."""
    return file.read_bytes().count(b"\n") * processes // 24 if file.exists() else 0


def position_of(line: str) -> int:
    return int(line.split("\t")[0])


@pytest.mark.parametrize("legs", [[1, 1], pytest.param([3, 1, 2], marks=pytest.mark.slow)])
def test_killed_at_random_times_and_resumed_on_any_number_of_processes_nothing_differs(
    stream, killed_stream, tmp_path, legs
):
    """Each leg goes on from the global batches that every process of the one before it had written down."""
    seen: list[str] = []
    for processes in legs:
        seen += killed_stream(len(seen), processes, random.Random(len(seen)).randint(1, 4))
    assert seen == stream(tmp_path / "whole.tsv", 24, 1, "--batches", len(seen) // 24)


@pytest.mark.slow
def test_a_mixture_is_the_same_on_any_number_of_processes_across_its_epochs(stream, tmp_path, sample_shards):
    """By weight, 10 of 12 lanes are the larger data set's; both go through several epochs of their own."""
    words = [f"{sample_shards / 'train'}=0.8", f"{sample_shards / 'valid'}=0.2"]
    alone = stream(tmp_path / "alone.tsv", 24, 1, "--batches", 24, "--workers", 1, "--data", *words)
    late = stream(tmp_path / "late.tsv", 8, 3, "--start", 288, "--batches", 12, "--data", *words)
    assert late == alone[288:]
    data = open_training_data(words, Topology(), lanes=12, seed=0)
    sources = [data.dataset.source(block) for block in data.order.at(np.arange(len(alone))).block.tolist()]
    assert data.lanes_of == (10, 2)
    for number, dataset in enumerate(data.datasets):
        own = [line.split("\t")[1] for line, source in zip(alone, sources, strict=True) if source == number]
        expected = sorted(dataset.read_sample(sample).key for sample in range(len(dataset)))
        epochs = [own[first : first + len(dataset)] for first in range(0, len(own), len(dataset))]
        assert len(epochs) > 2
        assert all(sorted(epoch) == expected for epoch in epochs[:-1])


class Run:
    """A training run on the real sample, whole or killed and resumed."""

    def __init__(self, launch, shards: Path, folder: Path, name: str) -> None:
        self.launcher, self.environment = launch
        self.folder = folder / name
        self.flags = [
            "--train-data",
            shards / "train",
            "--val-data",
            shards / "valid",
            "--model",
            "tiny",
            "--mlm",
        ]
        self.flags += ["--global-batch-size", GLOBAL_BATCH, "--steps", STEPS, "--epochs", 5, "--lr", 1e-3]
        self.flags += ["--save-every", 5, "--log-every", 7, "--logs", folder, "--name", name, "--seed", 1]

    def start(self, processes: int, *flags: object) -> subprocess.Popen:
        command = [str(part) for part in [*self.launcher(processes, "train"), *self.flags, *flags]]
        log = open(self.folder.with_suffix(".log"), "a")  # noqa: SIM115
        return subprocess.Popen(
            command, env=self.environment(), start_new_session=True, stdout=log, stderr=log
        )

    def finish(self, processes: int, *flags: object) -> float:
        """Run to the end; the seconds it took."""
        begin = time.monotonic()
        assert self.start(processes, *flags).wait(timeout=240) == 0, self.folder.with_suffix(
            ".log"
        ).read_text()
        return time.monotonic() - begin

    def kill(self, processes: int, after: float) -> bool:
        """Start or go on, and kill all processes after some seconds; whether they were still at work."""
        job = self.start(processes, "--resume", "auto")
        try:
            job.wait(timeout=after)
            return False
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            # torchrun gives its workers sessions of their own, which a kill of the group does not reach; one
            # that was just being started has its flags only a moment later
            pattern = f"--logs {self.folder.parent} --name {self.folder.name}"
            for _ in range(3):
                while not subprocess.run(["pkill", "-KILL", "-f", "--", pattern], check=False).returncode:
                    time.sleep(0.05)
                time.sleep(0.1)
            return True

    def weights(self) -> dict[str, torch.Tensor]:
        """And all else that steps change: moments, average."""
        checkpoint = Checkpoint.load(str(self.folder / "checkpoints"))
        assert checkpoint.step == STEPS
        return checkpoint.tensors()

    def metrics(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(killed: Run, whole: Run) -> None:
    ours, theirs = killed.weights(), whole.weights()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    noisy = {"samples_per_second", "step_seconds", "tflops_per_second", "loader_wait"}
    kept = [
        [
            {k: v for k, v in entry.items() if k not in noisy}
            for entry in run.metrics()
            if entry["kind"] != "loader"
        ]
        for run in (killed, whole)
    ]
    assert kept[0] == kept[1]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("processes", "kills", "flags"),
    [
        (1, 1, []),
        *(pytest.param(n, 3, [], marks=pytest.mark.slow) for n in (1, 2, 3, 4)),
        pytest.param(2, 1, EVERYTHING, marks=pytest.mark.slow),
        pytest.param(2, 1, [*EVERYTHING, "--fsdp"], marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_run_ends_bit_identical(launch, sample_shards, tmp_path, processes, kills, flags):
    """Killed at moments drawn from the wall clock, across epoch ends (16 steps are 1.7 epochs)."""
    moments = random.Random(processes)
    whole, killed = (
        Run(launch, sample_shards, tmp_path, "whole"),
        Run(launch, sample_shards, tmp_path, "killed"),
    )
    for run in (whole, killed):
        run.flags += flags
    duration = whole.finish(processes)
    while not killed.kill(processes, after := duration * moments.uniform(0.45, 0.95)):
        duration = after  # it was faster than the whole run and ended before the kill: once more, earlier
        shutil.rmtree(killed.folder)
    for _ in range(kills - 1):
        killed.kill(processes, duration * moments.uniform(0.3, 0.95))
    killed.finish(processes, "--resume", "auto")
    assert_equal_runs(killed, whole)


def test_resumed_on_other_processes_the_run_keeps_its_global_batch(launch, sample_shards, tmp_path):
    run = Run(launch, sample_shards, tmp_path, "moved")
    run.flags[run.flags.index("--global-batch-size") : run.flags.index("--global-batch-size") + 2] = [
        "--batch-size",
        12,
    ]
    run.finish(2, "--steps", 6)
    run.finish(1, "--steps", 8, "--resume", "auto")
    checkpoint = torch.load(run.folder / "checkpoints" / "step-00000008.pt", weights_only=True)
    assert (checkpoint["global_batch"], checkpoint["samples_seen"]) == (24, 192)
