"""What features can be made of: a data set of shards (or what becomes one), or a folder of images."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.embedding.image_folder import ImageFolder, is_image_folder
from pipeline.embedding.manifest import EmbeddedData
from pipeline.open_data import open_data
from pipeline.table_flags import TableFlags
from pipeline.topology import Topology
from shards import Dataset, Folder, UsageError


@dataclass(frozen=True)
class Source:
    """Samples to embed, and how the manifest tells of them."""

    samples: Dataset | ImageFolder
    told: EmbeddedData


def open_source(address: str, topology: Topology, tables: TableFlags | None = None) -> Source:
    """Open what `--data` names; UsageError where there is nothing of the kind, or nothing in it."""
    samples: Dataset | ImageFolder
    kind: Literal["shards", "images"]
    if is_image_folder(address):
        samples, kind = ImageFolder(Path(address)), "images"
        place, fingerprint = str(samples.folder), samples.fingerprint
    else:
        samples, kind = open_data(address, topology, tables), "shards"
        place, fingerprint = absolute(samples.folder), samples.manifest.fingerprint
    if not len(samples):
        raise UsageError(f"{address}: this data set has no samples: there is nothing to embed")
    return Source(samples, EmbeddedData(place, kind, fingerprint, len(samples)))


def absolute(folder: Folder) -> str:
    """The address of a folder from anywhere."""
    return folder.address if folder.remote else os.path.abspath(folder.address.removeprefix("file://"))
