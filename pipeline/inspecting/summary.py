"""A manifest in a few lines for a person."""

import json

import numpy as np

from shards import Dataset

_SHOWN = 300  # characters of what made the data set


def summarise(dataset: Dataset) -> str:
    """What a data set is made of, how it was made, and what its samples are like."""
    manifest, lengths = dataset.manifest, dataset.lengths
    if dataset.selected is not None:
        lengths = lengths[dataset.selected]
    names = manifest.member_names
    caption = names.caption_extension + (f", under {names.caption_key!r}" if names.caption_key else "")
    made_by = dict(manifest.made_by)
    tool = made_by.pop("tool", "unknown")
    details = ", ".join(f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in made_by.items())
    rows = {
        "samples": f"{len(dataset):,}",
        "view": "no"
        if manifest.selection is None
        else f"yes: {len(dataset):,} of the {manifest.indexed_samples:,} samples in its shards",
        "shards": f"{len(manifest.shards):,}, {_folders(dataset)}",
        "bytes": f"{manifest.total_bytes:,}",
        "blocks": f"{len(dataset.blocks):,}, the largest of {dataset.blocks.length.max(initial=0):,} bytes",
        "bytes a sample": _quantiles(lengths),
        "image": f"the first of {', '.join(names.image_extensions)}",
        "caption": caption,
        "made by": f"{tool}: {details}"[:_SHOWN] if details else tool,
        "fingerprint": manifest.fingerprint,
    }
    width = max(map(len, rows))
    return "\n".join([dataset.folder.address, *(f"  {name:<{width}}  {text}" for name, text in rows.items())])


def _quantiles(lengths: np.ndarray) -> str:
    if not len(lengths):
        return "none"
    return f"min {lengths.min():,}, median {int(np.median(lengths)):,}, max {lengths.max():,}"


def _folders(dataset: Dataset) -> str:
    references = sorted({record.folder for record in dataset.manifest.shards})
    if references == [""]:
        return "beside the manifest"
    shown = ", ".join(reference or "beside the manifest" for reference in references[:3])
    return f"in {shown}" + (f" and {len(references) - 3:,} more folders" if len(references) > 3 else "")
