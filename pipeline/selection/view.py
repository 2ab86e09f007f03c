"""Writing a view: a manifest that names shards where they lie, and says which of their samples it has."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.selection.sources import common_names
from shards import Dataset, Folder, Manifest, WrittenShard, write_manifest
from shards.references import make_reference


def write_view(out: Folder, sources: Sequence[Dataset], made_by: dict[str, Any]) -> Manifest:
    """Write the data set of all samples that the sources have; shards that have none of them are left out.

    Raises UsageError where the sources' samples differ in which members are image and caption.
    """
    names = common_names(sources)
    shards, selected = [], []
    for source in sources:
        references = {folder.address: make_reference(out, folder) for folder in source.folders}
        for number, record in enumerate(source.manifest.shards):
            shard = source.single_shard(number)
            if not len(shard):
                continue
            reference = references[source.shard_folder(number).address]
            shards.append(WrittenShard(replace(record, folder=reference), shard.lengths, shard.checksums))
            selected.append(np.ones(record.samples, bool) if shard.selected is None else shard.selected)
    mask = np.concatenate(selected)
    return write_manifest(out, shards, made_by, member_names=names, selected=None if mask.all() else mask)


def unused_share(dataset: Dataset) -> float:
    """The share of the bytes read in an epoch that belong to samples which the data set leaves out."""
    read = int(dataset.blocks.length.sum())
    used = dataset.lengths if dataset.selected is None else dataset.lengths[dataset.selected]
    return 1 - int(used.sum(dtype=np.int64)) / read
