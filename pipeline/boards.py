"""Where a run's figures can be watched: TensorBoard, Weights & Biases, or neither (`--report-to`)."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from shards import UsageError

NAMES = ("tensorboard", "wandb")


class Board(Protocol):
    """One place where figures are shown; steps only go forward."""

    def add(self, step: int, values: Mapping[str, float], notes: Mapping[str, str]) -> None:
        """Show named numbers and words."""

    def add_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Show a picture: [H, W, 3] uint8."""

    def finish(self, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Show the run's settings beside its last figures, and close."""


def parse_boards(text: str) -> list[str]:
    """The names in --report-to; UsageError for any other, or where a package is missing."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--report-to {text}: there is no '{name}'; give {' or '.join(NAMES)}, or both")
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise UsageError(
            "--report-to wandb needs the package wandb: pip install 'pmc-clip-stream[wandb]', or leave it out"
        )
    return names


def open_boards(names: Sequence[str], folder: Path, step: int, settings: Mapping[str, Any]) -> list[Board]:
    """The boards of a run in a folder that goes on after `step`."""
    kinds: dict[str, Callable[[Path, int, Mapping[str, Any]], Board]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
    }
    return [kinds[name](folder, step, settings) for name in names]


class TensorBoard:
    """Files in the run's folder; what a killed process wrote of later steps counts no more."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import: only for who writes

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, values: Mapping[str, float], notes: Mapping[str, str]) -> None:
        """Show named numbers and words."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        for name, text in notes.items():
            self._writer.add_text(name, text, step)

    def add_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Show a picture: [H, W, 3] uint8."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def finish(self, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Show the run's settings beside its last figures, and close."""
        from torch.utils.tensorboard.summary import hparams

        # SummaryWriter.add_hparams would make another run of it, in a folder of its own.
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
            if value is not None
        }
        writer = self._writer._get_file_writer()
        for summary in hparams(plain, dict(figures)):
            writer.add_summary(summary)
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb's, which goes on under the same id; WANDB_MODE=offline keeps it in the run's folder."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project="pmc-clip-stream",
            name=folder.name,
            id=xxhash.xxh64_hexdigest(str(folder.resolve()).encode()),
            dir=str(folder),
            config=dict(settings),
            resume="allow",
        )

    def add(self, step: int, values: Mapping[str, float], notes: Mapping[str, str]) -> None:
        """Show named numbers and words."""
        self._run.log({**values, **notes}, step=step)

    def add_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Show a picture: [H, W, 3] uint8."""
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def finish(self, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Show the run's settings beside its last figures, and close."""
        self._run.summary.update(dict(figures))
        self._run.finish()
