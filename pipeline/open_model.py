"""A model to be used: of a run's checkpoint, or of any weights that pmc_clip reads."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.checkpointing.places import follow_latest, may_be_checkpoint
from pmc_clip import PMCCLIP, ModelConfig, Tokenizer, create_model, get_tokenizer, load_model_config
from pmc_clip.factory import PUBLISHED_MODEL
from pmc_clip.pretrained import check_config, load_pretrained, read_pretrained
from shards import UsageError
from shards.storage import is_remote


@dataclass(frozen=True)
class OpenedModel:
    """A model with its tokeniser, and where it comes from."""

    model: PMCCLIP
    tokenizer: Tokenizer
    source: str
    """What was read: a path, a tag or an address."""
    name: str
    """A short name of it, for files."""
    folder: Path
    """Where what is found out about it goes: the folder of a run on this machine, or the current one."""
    progress: dict[str, int] = field(default_factory=dict)
    """Of a run's checkpoint: `step` and `samples_seen`."""

    @property
    def title(self) -> str:
        """What was read and, of a run, how far it was."""
        return f"{self.source}: step {self.progress['step']:,}" if self.progress else self.source

    def on(self, device: torch.device) -> PMCCLIP:
        """The model in evaluation mode, on a device, in the memory format of the batches and the trainer."""
        return self.model.to(device).to(memory_format=torch.channels_last).eval()


def open_model(checkpoint: str, model: str | None = None, *, average: bool = False) -> OpenedModel:
    """Read a run's checkpoint (of either kind, the `latest` beside it, or their folder), or whatever else
    `read_pretrained` reads: a tag, a path, an address.

    model: name or path of the model config; None: the weights' own, or the published one.
    average: take the average of the weights that a run with --ema keeps; UsageError where there is none.
    """
    name = follow_latest(checkpoint)
    path = Path(name)
    remote = is_remote(name)
    if may_be_checkpoint(name) and (run := Checkpoint.read(name, outline=True)):
        if model is not None:
            raise UsageError(f"--model {model}: {name} is of a run and says its model: leave the flag out")
        if average and not run.average:
            raise UsageError(
                f"--average: {name} is of a run without --ema and holds no average of its weights"
            )
        progress = {"step": run.step, "samples_seen": run.samples_seen}
        folder = Path() if remote else path.parent.parent
        short = f"{path.stem}-average" if average else path.stem
        return OpenedModel(*_model_of_run(run, name, average=average), name, short, folder, progress)
    if average:
        raise UsageError(f"--average: {name} is no checkpoint of a run, and holds no average of its weights")

    pretrained = read_pretrained(name)
    config = load_model_config(model) if model else pretrained.config or load_model_config(PUBLISHED_MODEL)
    check_config(config, pretrained)
    built = create_model(config, mlm=pretrained.mlm, pretrained_text=False, pretrained_image=False)
    load_pretrained(built, pretrained)
    return OpenedModel(
        built, get_tokenizer(config), pretrained.source, re.sub(r"\W+", "-", path.stem), Path()
    )


def _model_of_run(checkpoint: Checkpoint, address: str, *, average: bool) -> tuple[PMCCLIP, Tokenizer]:
    """The model of a run's checkpoint with its weights or their average, and its tokeniser; UsageError where
    the vocabulary is another.
    """
    config = ModelConfig.from_dict(checkpoint.model, address)
    tokenizer = get_tokenizer(config)
    if tokenizer.fingerprint() != checkpoint.tokenizer:
        raise UsageError(f"{address} was trained with another vocabulary than its model's tokeniser has here")
    mlm = checkpoint.config["mlm"]
    model = create_model(config, mlm=mlm, pretrained_text=False, pretrained_image=False)
    model.load_state_dict(checkpoint.weights(average=average))
    return model, tokenizer
