"""A run's checkpoint without a run: the tiny model as it is initialised."""

from pathlib import Path

import torch

import pmc_clip
from pipeline.checkpoint import LATEST, Checkpoint, DataState
from shards import Folder


def write_checkpoint(folder: Path, *, seed: int = 0, average: bool = False) -> Path:
    """The `latest` in a folder of checkpoints, of the tiny model with masked-token prediction.

    average: with one of the weights, which is another model's.
    """
    model = make_model(seed)
    Checkpoint(
        state_dict=model.state_dict(),
        optimizer={},
        step=7,
        samples_seen=56,
        global_batch=8,
        data=DataState("train", "0" * 16, seed=0, lanes=1),
        model=model.config.to_dict(),
        tokenizer=pmc_clip.get_tokenizer("tiny").fingerprint(),
        config={"mlm": True},
        average=make_model(seed + 1).state_dict() if average else {},
    ).save(Folder(folder))
    return folder / LATEST


def make_model(seed: int) -> pmc_clip.PMCCLIP:
    """The tiny model, whose batch norms have seen noise: without that, the features of all images are nearly
    the same.
    """
    torch.manual_seed(seed)
    model = pmc_clip.create_model("tiny")
    with torch.no_grad():
        for _ in range(20):
            model.encode_image(torch.randint(0, 256, (32, 3, 64, 64), dtype=torch.uint8))
    return model
