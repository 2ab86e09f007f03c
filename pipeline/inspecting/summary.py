"""A manifest in a few lines for a person."""

import json
import re

import numpy as np

from shards import Dataset

_SHOWN = 500  # characters of what made the data set
_HASH = re.compile(r"\b[0-9a-f]{64}\b")


def summarise(dataset: Dataset) -> str:
    """What a data set is made of, how it was made, and what its samples are like."""
    manifest, lengths = dataset.manifest, dataset.lengths
    if dataset.selected is not None:
        lengths = lengths[dataset.selected]
    names = manifest.member_names
    made_by = dict(manifest.made_by)
    tool = made_by.pop("tool", "unknown")
    details = ", ".join(
        f"{key} {_HASH.sub(_first_digits, json.dumps(value, ensure_ascii=False))}"
        for key, value in made_by.items()
    )
    made = f"{tool}: {details}" if details else tool
    rows = {
        "samples": f"{len(dataset):,}",
        "view": _view(dataset),
        "shards": f"{len(manifest.shards):,}, {_folders(dataset)}",
        "bytes": f"{manifest.total_bytes:,}",
        "blocks": f"{len(dataset.blocks):,}, the largest of {dataset.blocks.length.max(initial=0):,} bytes",
        "bytes a sample": _quantiles(lengths),
        "image": f"the first of {', '.join(names.image_extensions)}",
        "caption": names.caption_place,
        "made by": made if len(made) <= _SHOWN else f"{made[:_SHOWN]}…",
        "fingerprint": manifest.fingerprint,
    }
    width = max(map(len, rows))
    return "\n".join([dataset.folder.address, *(f"  {name:<{width}}  {text}" for name, text in rows.items())])


def _first_digits(found: re.Match[str]) -> str:
    return f"{found[0][:12]}…"


def _view(dataset: Dataset) -> str:
    """Whether a data set is made of shards that lie elsewhere, and which of their samples it has."""
    manifest = dataset.manifest
    if manifest.selection is not None:
        return f"yes: {len(dataset):,} of the {manifest.indexed_samples:,} samples in its shards"
    return "yes: all samples in its shards" if any(record.folder for record in manifest.shards) else "no"


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
