"""One training step: reproducible, independent of what came before, and the same on a GPU."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pipeline.data import reading_advice
from pipeline.topology import Topology
from pipeline.training.compilation import check_compiler
from pipeline.training.objective import Objective
from pipeline.training.optimizer import OptimizerOptions, decay_groups
from pipeline.training.starting_model import config_to_train
from pmc_clip import ModelConfig, create_model, load_model_config
from pmc_clip.losses import LossWeights
from shards import DataError, Mixture, UsageError, open_dataset
from tests.training_cases import BATCH, PLAIN_STEPS, make_batch, make_trainer, parameters_of


def siglip_config() -> ModelConfig:
    return config_to_train(load_model_config("tiny"), "siglip", mask_padding=False)


def test_a_step_depends_on_state_and_position_alone():
    """Dropout follows from (seed, samples seen, rank): what the generator did before does not matter."""
    first, second = make_trainer(), make_trainer()
    first.train_step(make_batch(1))
    torch.manual_seed(123)
    torch.rand(77)
    second.train_step(make_batch(1))
    for ours, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (first.step, first.samples_seen) == (1, BATCH)


def test_dropout_differs_from_step_to_step():
    trainer = make_trainer()
    trainer.train_step(make_batch(1))
    with torch.no_grad():
        drawn = torch.rand(3)
    trainer.train_step(make_batch(1))
    assert not torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("mlm", [True, False])
@pytest.mark.parametrize("match", ["contrastive", "siglip"])
def test_every_parameter_learns(mlm, match):
    """A parameter without a gradient would stop distributed training, or be dead weight."""
    config = config_to_train(load_model_config("tiny"), match, mask_padding=False)
    trainer = make_trainer(mlm=mlm, config=config, objective=Objective(match))
    before = parameters_of(trainer)
    for seed in range(3):
        trainer.train_step(make_batch(seed, mlm))
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
    trainer.train_step(make_batch(1))
    assert trainer.logit_parameters == {"logit_scale": pytest.approx(100)}


@pytest.mark.parametrize("match", ["contrastive", "siglip"])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_a_batch_in_parts_is_one_batch(match, mask_padding):
    """Three parts of 8 samples give the losses and the step of the whole: without dropout, whose draws are
    those of the parts, and with the batch norm of evaluation, since in training its statistics are, too.
    """
    config = config_to_train(load_model_config("tiny"), match, mask_padding=False)
    config = replace(config, text_cfg=replace(config.text_cfg, mask_padding=mask_padding))
    batch, found = make_batch(1), {}
    batch.tokens, batch.labels = (
        torch.nn.functional.pad(given, (0, 77 - given.shape[1])) for given in (batch.tokens, batch.labels)
    )
    batch.numbers = np.array([0, 1, 2, 3, 1, 5, 6, 0])  # samples that are there twice, in other parts
    for parts in (1, 3):
        objective = Objective(match, LossWeights(0.4, 0.6))
        trainer = make_trainer(config=config, optimizer=PLAIN_STEPS, lr=1.0, objective=objective, parts=parts)
        trainer.model.eval()
        found[parts] = trainer.train_step(batch), parameters_of(trainer)
    torch.testing.assert_close(found[3][0], found[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[3][1], found[1][1], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("weights", "still", "moving"),
    [
        (
            LossWeights(1, 0),
            ["mlm_projection", "fusion_module"],
            ["text_projection", "visual", "text_encoder"],
        ),
        (LossWeights(0, 1), ["text_projection", "logit_scale"], ["mlm_projection", "visual", "text_encoder"]),
    ],
)
def test_a_loss_of_weight_zero_is_told_and_not_trained(weights, still, moving):
    trainer = make_trainer(optimizer=PLAIN_STEPS, objective=Objective(weights=weights))
    before = parameters_of(trainer)
    losses = trainer.train_step(make_batch(1))
    assert losses.mlm is not None
    assert float(losses.total) == pytest.approx(
        weights.match * float(losses.match) + weights.mlm * float(losses.mlm)
    )
    changed = {name for name, now in parameters_of(trainer).items() if not torch.equal(now, before[name])}
    assert not [name for name in changed if name.startswith(tuple(still))]
    for part in moving:
        assert any(name.startswith(part) for name in changed), part


def test_the_sigmoid_loss_starts_as_published_and_falls():
    config = siglip_config()
    assert (config.init_logit_bias, config.init_logit_scale) == (-10.0, pytest.approx(np.log(10)))
    trainer = make_trainer(mlm=False, config=config, objective=Objective("siglip"))
    assert trainer.logit_parameters == {"logit_scale": pytest.approx(10), "logit_bias": -10.0}
    losses = [float(trainer.train_step(make_batch(1, mlm=False)).match) for _ in range(8)]
    assert losses[-1] < losses[0] / 2
    assert trainer.logit_parameters["logit_bias"] != -10.0


def test_a_bias_of_the_config_is_kept_for_the_sigmoid_loss_and_refused_without_it():
    config = replace(load_model_config("tiny"), init_logit_bias=-3.0)
    assert config_to_train(config, "siglip", mask_padding=False) == config
    with pytest.raises(UsageError, match="init_logit_bias, which --loss contrastive would never train"):
        config_to_train(config, "contrastive", mask_padding=False)


@pytest.mark.parametrize("parts", [1, 2])
def test_samples_with_one_caption_are_no_negatives_if_asked(parts):
    batch = make_batch(1, mlm=False, captions=["the same figure, another panel"] * BATCH)
    plain = make_trainer(mlm=False, parts=parts).train_step(batch)
    ignoring = make_trainer(mlm=False, parts=parts, objective=Objective(ignore_same_captions=True))
    assert float(plain.match) > 1
    assert float(ignoring.train_step(batch).match) == pytest.approx(0, abs=1e-6)
    other = make_batch(1, mlm=False)
    told = make_trainer(mlm=False, parts=parts).train_step(other)
    torch.testing.assert_close(
        make_trainer(mlm=False, parts=parts, objective=Objective(ignore_same_captions=True))
        .train_step(other)
        .match,
        told.match,
    )


@pytest.mark.parametrize("before_fused_steps", [False, True])
def test_a_trainer_goes_on_from_what_another_saved(before_fused_steps):
    """To the bit; also from an optimiser's state as earlier versions saved it: of a plain update, and with
    moments of convolutions in another memory format.
    """
    whole = make_trainer(config=siglip_config(), objective=Objective("siglip"), parts=2)
    for seed in range(2):
        whole.train_step(make_batch(seed))
    file = io.BytesIO()
    torch.save((whole.model.state_dict(), whole.optimizer.state_dict()), file)
    file.seek(0)
    weights, optimizer = torch.load(file, weights_only=True)
    if before_fused_steps:
        for state in optimizer["state"].values():
            state.update({name: value.contiguous() for name, value in state.items()})
        for group in optimizer["param_groups"]:
            group["fused"] = None
    resumed = make_trainer(config=siglip_config(), objective=Objective("siglip"), parts=2)
    resumed.model.load_state_dict(weights)
    resumed.load_optimizer(optimizer)
    resumed.step, resumed.samples_seen = whole.step, whole.samples_seen
    for trainer in (whole, resumed):
        trainer.train_step(make_batch(2))
    ours, theirs = parameters_of(resumed), parameters_of(whole)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_settings_at_a_resume_are_those_of_the_flags():
    saved = make_trainer()
    saved.train_step(make_batch(1))
    trainer = make_trainer(optimizer=OptimizerOptions(beta1=0.5, weight_decay=0.01))
    trainer.load_optimizer(saved.optimizer.state_dict())
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.5, 0.999)}
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.0, 0.01]


def test_captions_of_any_length_are_compiled_once():
    trainer, compiler = make_trainer(compiled=True), CompileCounter()
    trainer.model.compile(backend=compiler)  # in place of the real one, which takes a minute
    lengths = set()
    for seed in range(20):
        captions = [f"figure {n} of article {seed}" + " liver" * (seed * 3) for n in range(BATCH)]
        batch = make_batch(seed, captions=captions)
        trainer.train_step(batch)
        lengths.add(batch.tokens.shape[1])
    assert len(lengths) > 5
    assert compiler.frame_count == 1


def test_without_a_compiler_compilation_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"no no-such-compiler: install it, name another in .* CXX"):
        check_compiler()


def test_what_cannot_be_compiled_is_said_with_its_reason():
    def failing(*_):
        raise ValueError("this machine has no such instruction")

    trainer = make_trainer(compiled=True)
    trainer.model.compile(backend=failing)
    with pytest.raises(DataError, match=r"--compile: .*no such instruction.* train without --compile"):
        trainer.train_step(make_batch(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_gpu_learns_the_same(bf16, parts):
    """Losses of the first step agree with the CPU's, and both fall."""
    losses = {}
    for device in ("cpu", "cuda"):
        precision = "bf16" if bf16 and device == "cuda" else "fp32"
        trainer = make_trainer(device, precision=precision, parts=parts)
        trainer.model.eval()  # without dropout, whose draws differ between devices
        losses[device] = [float(trainer.train_step(make_batch(1)).total) for _ in range(5)]
    assert losses["cuda"][0] == pytest.approx(losses["cpu"][0], rel=0.02 if bf16 else 1e-3)
    assert losses["cuda"][-1] < losses["cuda"][0]


def test_lanes_that_processes_do_not_divide_are_pointed_out(sample_shards):
    dataset = open_dataset(str(sample_shards / "train"))
    data = Mixture([dataset], [384])
    assert "--lanes" not in reading_advice(data, Topology(0, 6))
    advice = reading_advice(data, Topology(0, 5))
    assert "read up to 5 times" in advice
    assert "--lanes 385" in advice
    assert "--lanes" not in reading_advice(Mixture([dataset], [385]), Topology(0, 5))
