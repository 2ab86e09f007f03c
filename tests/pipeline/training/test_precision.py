"""Lower precision, clipping and averaging: what they change in a step, and what they must not."""

import io

import pytest
import torch

from pipeline.training.optimizer import OptimizerOptions
from shards import UsageError
from tests.training_cases import BATCH, PLAIN_STEPS, make_batch, make_trainer, parameters_of


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("parts", [1, 2])
def test_lower_precision_learns_the_same_over_weights_in_float32(precision, parts):
    losses = {}
    for name in ("fp32", precision):
        trainer = make_trainer(precision=name, parts=parts)
        trainer.model.eval()  # without dropout
        seen = [float(trainer.train_step(make_batch(1)).total) for _ in range(7)]
        losses[name] = list(dict.fromkeys(seen))[:4]  # without the steps that fp16 skips to find its scale
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses[precision] != losses["fp32"]


def test_the_scale_of_fp16_loss_goes_on_from_a_checkpoint():
    trainer = make_trainer(precision="fp16")
    trainer.train_step(make_batch(1))
    saved = trainer.state()["scaler"]
    assert saved["scale"] >= 1
    assert make_trainer(precision="fp32").state()["scaler"] == {}


def test_gradients_that_overflow_fp16_change_no_weight_and_lower_the_scale():
    trainer = make_trainer(precision="fp16", optimizer=OptimizerOptions(grad_clip=1.0))
    trainer.train_step(make_batch(1))
    scale, before = trainer.state()["scaler"]["scale"], parameters_of(trainer)
    handle = trainer.model.text_projection.register_hook(lambda gradient: gradient * float("inf"))
    trainer.train_step(make_batch(2))
    handle.remove()
    assert trainer.state()["scaler"]["scale"] < scale
    assert [name for name, now in parameters_of(trainer).items() if not torch.equal(now, before[name])] == []
    trainer.train_step(make_batch(3))
    assert not torch.equal(parameters_of(trainer)["text_projection"], before["text_projection"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipped_gradients_have_the_norm_that_was_asked_for(precision):
    """With steps that follow the gradient's size, a tenth of the norm is a tenth of the way."""
    moved, norms = {}, {}
    for limit in (None, 0.05, 1e9):
        optimizer = OptimizerOptions(eps=1e3, weight_decay=0.0, grad_clip=limit)
        trainer = make_trainer(optimizer=optimizer, lr=1.0, precision=precision)
        before = parameters_of(trainer)
        trainer.train_step(make_batch(1))
        after = parameters_of(trainer)
        moved[limit] = torch.stack([(after[name] - before[name]).norm() for name in after]).norm()
        norms[limit] = float(trainer.gradient_norm)
    assert norms[None] == norms[0.05] == norms[1e9] > 0.05
    assert moved[None] == moved[1e9]
    assert float(moved[0.05] / moved[None]) == pytest.approx(0.05 / norms[None], rel=1e-2)


def test_the_average_of_the_weights_follows_them_and_leaves_them_alone():
    plain, trainer = make_trainer(), make_trainer(optimizer=OptimizerOptions(ema=0.5))
    own = [parameters_of(trainer)["text_projection"]]
    for seed in range(12):
        for each in (plain, trainer):
            each.train_step(make_batch(seed))
        own.append(parameters_of(trainer)["text_projection"])
    expected = own[0].double()
    for step, weights in enumerate(own[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
    with trainer.ready_for_evaluation(averaged=True) as model:
        assert torch.allclose(model.text_projection.double(), expected, atol=1e-6)
        assert not torch.equal(model.text_projection, own[-1])
    with trainer.ready_for_evaluation(averaged=False) as model:
        assert torch.equal(model.text_projection, own[-1])
    ours, theirs = trainer.model.state_dict(), plain.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_an_average_goes_on_from_a_checkpoint_and_is_not_begun_in_mid_run():
    options = OptimizerOptions(ema=0.9)
    trainer = make_trainer(optimizer=options)
    trainer.train_step(make_batch(1))
    file = io.BytesIO()
    torch.save(trainer.state()["average"], file)
    file.seek(0)
    again = make_trainer(optimizer=options)
    again.average.load(torch.load(file, weights_only=True))
    ours, theirs = again.average.state(), trainer.average.state()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    with pytest.raises(UsageError, match=r"saved without an average.*leave --ema out"):
        again.average.load({})


def test_a_step_says_how_large_its_gradient_was():
    trainer = make_trainer(optimizer=PLAIN_STEPS)
    trainer.train_step(make_batch(1))
    assert 0 < float(trainer.gradient_norm) < 1e4
    assert trainer.samples_seen == BATCH


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("options", [{}, {"parts": 2}, {"grad_checkpointing": True}], ids=str)
def test_a_gpu_learns_the_same_in_lower_precision(precision, options):
    losses = {}
    for device, name in (("cpu", "fp32"), ("cuda", precision)):
        trainer = make_trainer(device, precision=name, **options)
        trainer.model.eval()
        seen = [float(trainer.train_step(make_batch(1)).total) for _ in range(7)]
        losses[device] = list(dict.fromkeys(seen))[:4]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05)
    assert trainer.peak_tflops is None or trainer.peak_tflops > 10
