"""What is evaluated: a model, on a data set, by a number of processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from pipeline.data import LoaderOptions, evaluation_loader
from pipeline.decode import EvalDecode, EvalImages
from pipeline.evaluation.features import Features, compute_features
from pipeline.evaluation.gathering import gather_list
from pipeline.evaluation.sample_ids import checksums_of, make_ids, read_keys
from pipeline.loader import Batch, Loader
from pipeline.text import TextStage
from pipeline.topology import Topology
from pmc_clip import PMCCLIP, Tokenizer
from shards import Dataset

Watch = Callable[[Iterable[Batch]], Iterator[Batch]]


@dataclass(frozen=True)
class Subject:
    """A model (on `device`), a data set, and this process's place among those that evaluate.

    columns: of the samples' .json, for `Features.columns`.
    captions: whether `features` are of captions, too.
    known_ids: of the samples, for a view, whose ids follow from the whole data set.
    ready: features of this rank's samples that need not be computed.
    watch: passes the batches on; raises on all ranks where the work is to be given up.
    """

    model: PMCCLIP
    tokenizer: Tokenizer
    dataset: Dataset
    topology: Topology
    device: torch.device
    options: LoaderOptions
    batch_size: int = 64
    decode: EvalDecode = "exact"
    columns: Sequence[str] = ()
    captions: bool = True
    known_ids: Sequence[str] | None = None
    ready: Features | None = None
    watch: Watch = iter

    def loader(self, text: TextStage | None = None) -> Loader:
        """Batches of this rank's contiguous share of the samples, in manifest order."""
        return self._loader(self.dataset, text or TextStage(self.tokenizer), self.columns)

    @cached_property
    def features(self) -> Features:
        """Features of this rank's samples, computed when they are first asked for: on all ranks at once."""
        if self.ready is not None:
            return self.ready
        with self.loader() as loader:
            return self._compute_features(loader, captions=self.captions)

    @cached_property
    def ids(self) -> Sequence[str]:
        """The ids of all samples, in manifest order; on all ranks at once."""
        if self.known_ids is not None:
            return self.known_ids
        if "features" in vars(self):  # then the keys were read, too
            keys = gather_list(self.features.keys, self.topology)
        else:
            keys = read_keys(self.dataset, self.topology)
        return make_ids(keys, checksums_of(self.dataset))

    def image_features(self, dataset: Dataset, columns: Sequence[str]) -> Features:
        """Features of the images of this rank's share of another data set, with some of its columns."""
        with self._loader(dataset, TextStage(self.tokenizer), columns) as loader:
            return self._compute_features(loader, captions=False)

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """[n, D] float32 of length 1, on the CPU: features of captions that belong to no sample."""
        training = self.model.training
        self.model.eval()
        tokens = self.tokenizer(list(captions)).to(self.device)
        features = self.model.encode_text(tokens, normalize=True).float().cpu()
        self.model.train(training)
        return features

    def _compute_features(self, loader: Loader, *, captions: bool) -> Features:
        tokenizer = self.tokenizer if captions else None
        return compute_features(self.model, tokenizer, self.watch(loader), self.device)

    def _loader(self, dataset: Dataset, text: TextStage, columns: Sequence[str]) -> Loader:
        return evaluation_loader(
            dataset,
            self.topology,
            batch_size=self.batch_size,
            images=EvalImages(self.model.config.vision_cfg.image_size, self.decode),
            text=text,
            options=self.options,
            columns=columns,
        )
