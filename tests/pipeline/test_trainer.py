"""One training step: reproducible, independent of what came before, and the same on a GPU."""

import numpy as np
import pytest
import torch

from pipeline.data import reading_advice
from pipeline.loader import Batch
from pipeline.schedule import CosineSchedule
from pipeline.topology import Topology
from pipeline.trainer import OptimizerOptions, Trainer, decay_groups
from pmc_clip import create_model, get_tokenizer, mask_tokens
from shards import Mixture, UsageError, open_dataset

BATCH = 8


def make_trainer(device: str = "cpu", bf16: bool = False, mlm: bool = True) -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        create_model("tiny", mlm=mlm),
        get_tokenizer("tiny"),
        schedule=CosineSchedule(1e-3, 0, 1000),
        optimizer=OptimizerOptions(),
        topology=Topology(),
        device=torch.device(device),
        bf16=bf16,
        seed=5,
    )


def make_batch(seed: int, mlm: bool = True) -> Batch:
    rng = np.random.default_rng(seed)
    captions = [f"figure {number} of article {seed}: a lesion in the liver" for number in range(BATCH)]
    tokenizer = get_tokenizer("tiny")
    tokens, labels = tokenizer(captions), None
    if mlm:
        tokens, labels = mask_tokens(tokens, rng.random((*tokens.shape, 3)), tokenizer, 0.3)
    images = torch.from_numpy(rng.integers(0, 255, (BATCH, 64, 64, 3), np.uint8)).permute(0, 3, 1, 2)
    numbers = np.arange(BATCH)
    return Batch(numbers, np.zeros(BATCH), numbers, [""] * BATCH, captions, images, tokens, labels)


def test_a_step_depends_on_state_and_position_alone():
    """Dropout follows from (seed, samples seen, rank): what the generator did before does not matter."""
    first, second = make_trainer(), make_trainer()
    first.train_step(make_batch(1), BATCH)
    torch.manual_seed(123)
    torch.rand(77)
    second.train_step(make_batch(1), BATCH)
    for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (first.step, first.samples_seen) == (1, BATCH)


def test_dropout_differs_from_step_to_step():
    trainer = make_trainer()
    trainer.train_step(make_batch(1), BATCH)
    with torch.no_grad():
        drawn = torch.rand(3)
    trainer.train_step(make_batch(1), BATCH)
    assert not torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("mlm", [True, False])
def test_every_parameter_learns(mlm):
    """A parameter without a gradient would stop distributed training, or be dead weight."""
    trainer = make_trainer(mlm=mlm)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    for seed in range(3):
        trainer.train_step(make_batch(seed, mlm), BATCH)
    assert [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])] == []


def test_gains_biases_and_scalars_do_not_decay():
    model = create_model("tiny")
    plain, decayed = decay_groups(model.named_parameters(), 0.2)
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.2)
    assert any(p is model.logit_scale for p in plain["params"])
    assert any(p is model.text_projection for p in decayed["params"])
    assert len(plain["params"]) + len(decayed["params"]) == len(list(model.parameters()))


def test_logit_scale_stays_within_its_bound():
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.logit_scale.fill_(9)
    trainer.train_step(make_batch(1), BATCH)
    assert trainer.logit_scale == pytest.approx(100)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_learns_the_same(bf16):
    """Losses of the first step agree with the CPU's, and both fall."""
    losses = {}
    for device in ("cpu", "cuda"):
        trainer = make_trainer(device, bf16 and device == "cuda")
        trainer.model.eval()  # without dropout, whose draws differ between devices
        losses[device] = [float(trainer.train_step(make_batch(1), BATCH).total) for _ in range(5)]
    assert losses["cuda"][0] == pytest.approx(losses["cpu"][0], rel=0.02 if bf16 else 1e-3)
    assert losses["cuda"][-1] < losses["cuda"][0]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "contradict"),
    ],
)
def test_a_nonsensical_environment_is_refused(environment, message):
    with pytest.raises(UsageError, match=message):
        Topology.from_environment(environment)


def test_lanes_that_processes_do_not_divide_are_pointed_out(sample_shards):
    dataset = open_dataset(str(sample_shards / "train"))
    data = Mixture([dataset], [384])
    assert "--lanes" not in reading_advice(data, Topology(0, 6))
    advice = reading_advice(data, Topology(0, 5))
    assert "read up to 5 times" in advice
    assert "--lanes 385" in advice
    assert "--lanes" not in reading_advice(Mixture([dataset], [385]), Topology(0, 5))
