"""Which captions belong to which images, and the order in which both lie on the grid of scores."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pairing:
    """N images and M captions in the grid's order: sample after sample, those of a group side by side, so
    that scores inside a group lie near the grid's diagonal.

    Samples have numbers, 0 up to N-1, in the order of the ranks that have them; so have the captions of all
    samples, one sample's after another's.
    """

    image_order: np.ndarray  # int64 [N], the sample at each place
    text_order: np.ndarray  # int64 [M], the caption at each place
    image_group: np.ndarray  # int64 [N], ascending
    text_group: np.ndarray  # int64 [M], ascending
    first_text: np.ndarray  # int64 [N], the place of each image's first caption

    @staticmethod
    def make(labels: np.ndarray, ids: np.ndarray, counts: np.ndarray) -> "Pairing":
        """labels: uint64 [N], equal inside a group; ids: uint64 [N], hashes of the samples' ids, which decide
        the order inside groups; counts: int64 [N], captions of each sample.
        """
        order = np.lexsort((ids, labels))
        _, group = np.unique(labels, return_inverse=True)
        ordered = counts[order]
        before = np.cumsum(ordered) - ordered
        first_caption = (np.cumsum(counts) - counts)[order]
        text_order = np.repeat(first_caption - before, ordered) + np.arange(int(counts.sum()))
        return Pairing(order, text_order, group[order], np.repeat(group[order], ordered), before)

    @property
    def images(self) -> int:
        """N."""
        return len(self.image_order)

    @property
    def texts(self) -> int:
        """M."""
        return len(self.text_order)

    @property
    def first(self) -> np.ndarray:
        """Whether a caption is its image's first: bool [M]."""
        first = np.zeros(self.texts, bool)
        first[self.first_text] = True
        return first

    @property
    def texts_of_image(self) -> np.ndarray:
        """How many captions each image has."""
        return np.diff(np.append(self.first_text, self.texts))

    @property
    def images_of_group(self) -> np.ndarray:
        """How many images each group has."""
        return np.bincount(self.image_group)

    @property
    def texts_of_group(self) -> np.ndarray:
        """How many captions each group has."""
        return np.bincount(self.text_group)

    def different_of_group(self, hashes: np.ndarray) -> np.ndarray:
        """How many different captions each group has: int64 [groups]. hashes: uint64 [M], by caption."""
        _, caption = np.unique(hashes[self.text_order], return_inverse=True)
        pairs = np.unique(np.stack([self.text_group, caption]), axis=1)
        return np.bincount(pairs[0])

    @property
    def has_groups(self) -> bool:
        """Whether anything is shared: some image has several captions, or some group several images."""
        return self.texts > self.images or bool((self.images_of_group > 1).any())
