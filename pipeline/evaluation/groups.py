"""Which samples belong together: those that share a caption, or a value of a column."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from shards import UsageError


def text_hash(text: str) -> int:
    """A 64-bit hash of a text, whatever its white space."""
    return xxhash.xxh3_64_intdigest(" ".join(text.split()).encode("utf-8", "surrogateescape"))


def group_by_captions(hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A label for each sample, uint64 [N]: the same for samples that have a caption in common, directly or
    through others.

    hashes: uint64 [captions of all samples, sample after sample]; counts: int64 [N], captions of each. A
    label is the least hash of the group's captions, so it does not depend on the order of samples.
    """
    labels = np.minimum.reduceat(hashes, np.cumsum(counts) - counts) if len(counts) else hashes[:0]
    if len(hashes) == len(counts):
        return labels
    owner = np.repeat(np.arange(len(counts)), counts)
    _, caption = np.unique(hashes, return_inverse=True)
    while True:  # a label spreads over one more shared caption in each round
        least = np.full(caption.max() + 1, np.iinfo(np.uint64).max)
        np.minimum.at(least, caption, labels[owner])
        spread = np.minimum.reduceat(least[caption], np.cumsum(counts) - counts)
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def group_by_column(name: str, values: Sequence[Any]) -> np.ndarray:
    """A label for each sample, uint64 [N]: the same for those with the same value of a column.

    Raises UsageError where a sample has none.
    """
    missing = sum(value is None for value in values)
    if missing:
        raise UsageError(
            f"--group-key {name}: {missing:,} of {len(values):,} samples have no such column in their .json"
        )
    return np.array(
        [
            xxhash.xxh3_64_intdigest(f"{type(v).__name__} {v}".encode("utf-8", "surrogateescape"))
            for v in values
        ],
        np.uint64,
    )
