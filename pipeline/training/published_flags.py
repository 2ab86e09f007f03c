"""Flags of the published trainer that have nothing left to choose here: accepted, and explained in a line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PublishedFlags:
    """What is always so."""

    local_loss: bool = False
    """Accepted: each process always computes the rows of its own samples only, never the global matrix."""
    gather_with_grad: bool = False
    """Accepted: gradients always flow back through the gathering of features."""
    hugging_face: bool = False
    """Accepted: the model config always says where the text tower's weights and tokeniser come from."""
    dataset_type: Literal["webdataset", "csv", "auto"] | None = None
    """Accepted: what --train-data names is always told by itself, shards or a table."""

    def explain(self) -> Iterator[str]:
        """What there is to say about those that were given, a line each."""
        if self.local_loss:
            yield "--local-loss: always so; each process computes the rows of its own samples"
        if self.gather_with_grad:
            yield "--gather-with-grad: always so; gradients flow back through the gathering of features"
        if self.hugging_face:
            yield "--hugging-face: nothing to choose; the model config says where the text tower comes from"
        if self.dataset_type:
            yield f"--dataset-type {self.dataset_type}: nothing to choose; data are told by themselves"
