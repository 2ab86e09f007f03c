"""Steps whose loss or gradient is not finite: skipped by all processes, counted, and in the end explained."""

import json
import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline.checkpoint import Checkpoint
from pipeline.topology import Topology
from pipeline.training.nonfinite import NonFiniteSteps
from pmc_clip.accumulation import Losses
from shards import DataError
from tests.training_cases import BATCH, make_batch, make_trainer

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ],
    ),
]


def spoil(module: nn.Module):
    """What this module gives is not finite until the handle is removed."""
    return module.register_forward_hook(lambda module, inputs, output: output * float("nan"))


def first_convolution(trainer) -> nn.Module:
    return next(module for module in trainer.model.modules() if isinstance(module, nn.Conv2d))


def all_state(trainer) -> dict[str, torch.Tensor]:
    """Every tensor of model and optimiser, copied."""
    moments = trainer.optimizer.state_dict()["state"]
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()} | {
        f"{number}.{name}": tensor.clone()
        for number, state in moments.items()
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_bad_step_changes_nothing_but_the_position_and_the_next_one_goes_on(device, parts):
    trainer, undisturbed = (make_trainer(device, parts=parts) for _ in range(2))
    for one in (trainer, undisturbed):
        one.train_step(make_batch(1))
    before = all_state(trainer)
    hook = spoil(first_convolution(trainer))
    losses = trainer.train_step(make_batch(2))
    hook.remove()
    assert not losses.total.isfinite()
    after = all_state(trainer)
    counters = [name for name in before if not torch.equal(before[name], after[name])]
    assert all("num_batches_tracked" in name for name in counters)
    assert (trainer.step, trainer.samples_seen, trainer.non_finite.count()) == (2, 2 * BATCH, 1)

    undisturbed.step, undisturbed.samples_seen = 2, 2 * BATCH
    for one in (trainer, undisturbed):
        one.train_step(make_batch(3))
    assert trainer.non_finite.count() == 1
    expected = all_state(undisturbed)
    for name, tensor in all_state(trainer).items():
        assert "num_batches_tracked" in name or torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("device", DEVICES)
def test_after_too_many_in_a_row_the_run_ends_and_says_what_it_saw(device, tmp_path):
    trainer = make_trainer(device, max_nonfinite=3)
    with torch.no_grad():
        trainer.model.logit_scale.fill_(4.0)
    batch = make_batch(1)
    batch.keys = [f"key{number}" for number in range(BATCH)]
    for bad in (True, True, False, True, True):
        hook = spoil(first_convolution(trainer)) if bad else None
        trainer.train_step(batch)
        trainer.non_finite.end_if_hopeless(tmp_path)
        if hook:
            hook.remove()
    spoil(first_convolution(trainer))
    trainer.train_step(batch)
    with pytest.raises(DataError, match=r"step 6: .* in 3 steps in a row; .*not-finite-step-00000006\.json"):
        trainer.non_finite.end_if_hopeless(tmp_path)
    (rank,) = json.loads((tmp_path / "not-finite-step-00000006.json").read_text())["ranks"]
    assert (rank["step"], rank["samples_seen"], rank["keys"]) == (6, 5 * BATCH, batch.keys)
    assert rank["losses"]["total"] == rank["losses"]["match"] == rank["gradient_norm"] == "nan"
    assert rank["logit_scale"] == pytest.approx(54.6, abs=0.5)
    assert "nan" in rank["not_finite"].values()
    assert rank["not_finite_count"] >= len(rank["not_finite"])


def test_the_state_of_a_run_counts_what_was_skipped():
    trainer = make_trainer()
    spoil(first_convolution(trainer))
    trainer.train_step(make_batch(1))
    assert trainer.state()["skipped_steps"] == 1


def judge(rank: int, port: int, answers) -> None:
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    steps = NonFiniteSteps(nn.BatchNorm1d(3), {}, Topology(rank, 2, rank, 2), torch.device("cpu"))
    norm = torch.tensor(1.0)
    for bad_rank in (None, 1, 0):
        loss = torch.tensor(float("inf") if rank == bad_rank else 1.0)
        steps.begin_step()
        bad = steps.judge(Losses(loss, loss, None), norm, step=1, samples_seen=0, keys=[])
        answers.put((rank, float(bad), steps.count()))


def test_what_one_process_finds_all_skip():
    """Where the gradients alone would not tell: each process knows its own losses only."""
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [fork.Process(target=judge, args=(rank, port, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=60) for _ in range(6))
    for process in processes:
        process.join(60)
    assert found == [(rank, *answer) for rank in range(2) for answer in ((0.0, 0), (1.0, 1), (1.0, 2))]


def test_a_run_whose_weights_burst_ends_with_a_diagnosis_and_finite_weights(run, sample_shards, tmp_path):
    flags = ["--train-data", sample_shards / "train", "--model", "tiny", "--global-batch-size", 24, "--mlm"]
    flags += ["--warmup", 0, "--lr", "1e30", "--max-nonfinite", 4, "--log-every", 1, "--epochs", 9]
    done = run("train", *flags, "--name", "burst", "--save-every", 1)
    assert done.returncode == 1, done.stderr
    assert "steps in a row" in done.stderr
    folder = tmp_path / "runs" / "burst"
    (path,) = folder.glob("not-finite-step-*.json")
    (rank,) = json.loads(path.read_text())["ranks"]
    assert len(rank["keys"]) == 24
    assert all("/" not in key and key for key in rank["keys"])
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    counts = [entry["skipped_steps"] for entry in entries if entry["kind"] == "train"]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    checkpoint = Checkpoint.load(str(folder / "checkpoints" / "latest"))
    assert all(tensor.isfinite().all() for tensor in checkpoint.state_dict.values())
