"""Labels of samples: from a column of their `.json`, or from a table beside the shards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.features import Features
from pipeline.sharding.tables import TableFormat, read_table
from pipeline.wording import counted
from shards import UsageError

IMAGE = "image"  # the column of the .json in which `pipeline.shard` keeps the image's name
_SHOWN = 5  # labels named in a message


@dataclass(frozen=True)
class LabelSource:
    """Where labels are: in the samples' column `key`, or in a table that was read."""

    key: str
    table: str | None = None
    by_image: Mapping[str, str] | None = None
    """The table's label of each image, by the image's name or the sample's key."""

    @classmethod
    def of_column(cls, key: str) -> "LabelSource":
        """Labels that the samples carry."""
        return cls(key)

    @classmethod
    def of_table(cls, address: str, key: str, image_key: str = IMAGE) -> "LabelSource":
        """Labels from the columns `image_key` and `key` of a table, of any kind that `pipeline.shard` reads.

        Raises UsageError where it is no such table, or gives an image two labels.
        """
        labels: dict[str, str] = {}
        for image, label, _ in read_table(address, TableFormat(image_key, key)):
            if labels.setdefault(image, label) != label:
                raise UsageError(
                    f"--labels {address}: {image} has two labels, {labels[image]!r} and {label!r}"
                )
        return cls(key, address, labels)

    @property
    def columns(self) -> Sequence[str]:
        """The columns of the samples that are read."""
        return (self.key,) if self.by_image is None else (IMAGE,)

    def of(self, features: Features) -> list[str | None]:
        """The label of each sample, None where there is none."""
        if self.by_image is None:
            return [_text(value) for value in features.columns[self.key]]
        names = zip(features.columns[IMAGE], features.keys, strict=True)
        return [self.by_image.get(image, self.by_image.get(key)) for image, key in names]

    def describe(self) -> str:
        """Where the labels are, for messages."""
        return (
            f"the samples' column {self.key!r}"
            if self.table is None
            else f"{self.table}, column {self.key!r}"
        )


def class_numbers(
    labels: Sequence[str | None], classes: Sequence[str], source: LabelSource, data: str
) -> np.ndarray:
    """The class number of each label [N] int64.

    Raises UsageError where samples have no label, or one that is no class.
    """
    if missing := sum(label is None for label in labels):
        raise UsageError(
            f"{data}: {counted(missing, 'sample')} of {len(labels):,} without a label in "
            f"{source.describe()}: give every sample one, or choose those that have one with pipeline.select"
        )
    numbers = {label: number for number, label in enumerate(classes)}
    unknown = Counter(label for label in labels if label not in numbers)
    if unknown:
        shown = ", ".join(f"{label!r} ({count:,} times)" for label, count in unknown.most_common(_SHOWN))
        raise UsageError(
            f"{data}: {source.describe()} has labels that are no class: {shown}; the classes are "
            f"{', '.join(map(repr, classes[:20]))}{'…' if len(classes) > 20 else ''}"
        )
    return np.array([numbers[label] for label in labels if label is not None], np.int64)


def _text(value: Any) -> str | None:
    """A label as text; a whole number that a table's column of floats made a 3.0 is a 3."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
