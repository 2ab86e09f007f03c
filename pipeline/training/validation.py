"""Validation while a run trains: its flags, and what the model as it stands is found to do."""

from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.checks import check_at_least
from pipeline.data import LoaderOptions
from pipeline.decode import EvalDecode
from pipeline.evaluation.evaluator import Evaluator, Findings
from pipeline.evaluation.masked_tokens import MaskedTokensEvaluator
from pipeline.evaluation.retrieval import RetrievalEvaluator
from pipeline.evaluation.retrieval_result import VALUES
from pipeline.evaluation.subject import Subject, Watch
from pipeline.topology import Topology
from pipeline.training.length import RunLength
from pipeline.training.validation_pictures import FoundPictures, find_pictures
from pmc_clip import PMCCLIP, Tokenizer
from shards import Dataset, UsageError


@dataclass(frozen=True, kw_only=True)
class ValidationFlags:
    """What a run is validated on, and when."""

    val_data: str | None = None
    """Validation data: a folder of shards, or a table."""
    val_frequency: int = 1
    """Epochs between validations."""
    val_weights: Literal["current", "average"] | None = None
    """Which weights are validated: those that train, or their average (with --ema); without it, the average
    where there is one.
    """
    keep_best: str | None = None
    """Keep the checkpoint with the best value of a validation metric as best.pt; image_to_text_recall_at_10,
    say.
    """

    def is_due(self, length: RunLength, samples_seen: int) -> bool:
        """Whether the run is validated when so many samples have been seen: after an epoch, or at its end."""
        epochs = length.ends_epoch(samples_seen)
        return samples_seen >= length.stop or (epochs > 0 and epochs % self.val_frequency == 0)

    def check_validation(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, val_frequency=1)
        if self.keep_best is None:
            return
        if self.keep_best not in VALUES:
            raise UsageError(f"--keep-best {self.keep_best}: no such metric; there are {', '.join(VALUES)}")
        if self.val_data is None:
            raise UsageError(f"--keep-best {self.keep_best}: give --val-data, which it is measured on")


@dataclass(frozen=True)
class Found:
    """What a validation found, evaluator by evaluator, and pairs to look at."""

    findings: list[Findings]
    pictures: FoundPictures


@dataclass(frozen=True)
class Validation:
    """What is needed to validate a model again and again."""

    dataset: Dataset
    tokenizer: Tokenizer
    decode: EvalDecode
    options: LoaderOptions
    topology: Topology
    device: torch.device

    def run(self, model: PMCCLIP, watch: Watch = iter) -> Found | None:
        """What a model is found to do, on the main process; every rank must call it.

        watch: passes batches on, and may end with an exception on all ranks.
        """
        subject = Subject(
            model,
            self.tokenizer,
            self.dataset,
            self.topology,
            self.device,
            self.options,
            decode=self.decode,
            watch=watch,
        )
        evaluators: list[Evaluator] = [RetrievalEvaluator()]
        if model.mlm:
            evaluators.append(MaskedTokensEvaluator())
        found = [evaluator.run(subject) for evaluator in evaluators]
        pictures = find_pictures(subject)
        return Found([findings for findings in found if findings], pictures) if pictures else None
