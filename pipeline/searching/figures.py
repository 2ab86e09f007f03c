"""The figures that were embedded, read again one by one from where they lie."""

from pathlib import Path

from pipeline.embedding.image_folder import ImageFolder
from pipeline.embedding.manifest import EmbeddedData
from shards import DataError, Dataset, UsageError, open_dataset


class Figures:
    """Images of samples by their numbers."""

    def __init__(self, told: EmbeddedData, address: str | None = None) -> None:
        """told: what the embeddings say of their data; address: where they are now, if not there.

        Raises UsageError where they are not there, or are others.
        """
        place = address or told.address
        self._data: Dataset | ImageFolder
        try:
            if told.kind == "images":
                self._data = ImageFolder(Path(place))
                fingerprint = self._data.fingerprint
            else:
                self._data = open_dataset(place)
                fingerprint = self._data.manifest.fingerprint
        except UsageError as error:
            raise UsageError(
                f"{error}; the figures of the embeddings were read from there: if they lie elsewhere "
                "now, give --data"
            ) from error
        if fingerprint != told.fingerprint:
            raise UsageError(
                f"{place}: other data than those of the embeddings, or changed since ({told.address}): give "
                "those with --data, or embed the data anew with --overwrite"
            )

    def read(self, number: int) -> "bytes | memoryview | None":
        """The bytes of an image; None where they cannot be read, or not any more."""
        try:
            if isinstance(self._data, ImageFolder):
                return self._data.read_block(number)
            return self._data.read_sample(number).image
        except (DataError, OSError):
            return None
