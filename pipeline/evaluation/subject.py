"""What is evaluated: a model, on a data set, by a number of processes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from pipeline.data import LoaderOptions, evaluation_loader
from pipeline.decode import EvalDecode, EvalImages
from pipeline.evaluation.features import Features, compute_features
from pipeline.loader import Loader
from pipeline.text import TextStage
from pipeline.topology import Topology
from pmc_clip import PMCCLIP, Tokenizer
from shards import Dataset


@dataclass(frozen=True)
class Subject:
    """A model (on `device`), a data set, and this process's place among those that evaluate.

    columns: of the samples' .json, for `Features.columns`.
    """

    model: PMCCLIP
    tokenizer: Tokenizer
    dataset: Dataset
    topology: Topology
    device: torch.device
    options: LoaderOptions
    batch_size: int = 64
    decode: EvalDecode = "exact"
    columns: Sequence[str] = field(default_factory=tuple)

    def loader(self, text: TextStage | None = None, dataset: Dataset | None = None) -> Loader:
        """Batches of this rank's contiguous share of the samples, in manifest order; of another data set,
        where one is given.
        """
        return evaluation_loader(
            self.dataset if dataset is None else dataset,
            self.topology,
            batch_size=self.batch_size,
            images=EvalImages(self.model.config.vision_cfg.image_size, self.decode),
            text=text or TextStage(self.tokenizer),
            options=self.options,
            columns=self.columns,
        )

    @cached_property
    def features(self) -> Features:
        """Features of this rank's samples, computed when they are first asked for: on all ranks at once."""
        return self.compute_features()

    def compute_features(self, dataset: Dataset | None = None) -> Features:
        """Features of this rank's share of the samples; of another data set, where one is given."""
        with self.loader(dataset=dataset) as loader:
            return compute_features(self.model, loader, self.device)
