"""Whatever holds a state of its own goes on from a checkpoint to the bit: loss scale, average and all."""

import dataclasses

import torch

from pipeline.train import train
from pipeline.training.config import TrainConfig
from tests.figures import write_figures


def test_a_resumed_run_with_everything_on_ends_as_the_whole_one(tmp_path):
    """In the middle of an epoch, with validations of the average between."""
    data = write_figures(tmp_path / "data", 40)
    whole = TrainConfig(
        train_data=(data,),
        val_data=data,
        model="tiny",
        mlm=True,
        batch_size=8,
        steps=6,
        epochs=3,
        lr=1e-3,
        precision="fp16",
        ema=0.9,
        accum=2,
        grad_checkpointing=True,
        grad_clip=1.0,
        report_to="",
        logs=str(tmp_path),
        name="whole",
        workers=1,
    )
    train(whole)
    resumed = dataclasses.replace(whole, name="resumed")
    train(dataclasses.replace(resumed, steps=3))
    train(dataclasses.replace(resumed, resume="auto"))
    ours, theirs = (
        torch.load(tmp_path / name / "checkpoints" / "step-00000006.pt", weights_only=True)
        for name in ("resumed", "whole")
    )
    for part in ("state_dict", "average"):
        differing = [name for name in theirs[part] if not torch.equal(ours[part][name], theirs[part][name])]
        assert differing == [], part
    assert ours["scaler"] == theirs["scaler"]
    assert theirs["average"]
