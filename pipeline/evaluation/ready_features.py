"""Features that `pipeline.embed` wrote, in place of a pass over images and captions."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.embedding.manifest import Part
from pipeline.embedding.reader import Embeddings
from pipeline.evaluation.feature_rows import FeatureRows
from pipeline.evaluation.features import Features
from pipeline.evaluation.groups import text_hash
from pipeline.model_fingerprint import model_fingerprint
from pipeline.open_model import OpenedModel
from pipeline.topology import Topology
from pipeline.wording import counted
from shards import Dataset, UsageError

_AT_A_TIME = 4096


def check_embeddings(
    embeddings: Embeddings, whole: Dataset, opened: OpenedModel, tasks: Sequence[str], columns: Sequence[str]
) -> None:
    """Raise UsageError where the figures would be others than those without embeddings: of other data or
    another model, of too few samples, or for tasks that want more than features.
    """
    manifest, name = embeddings.manifest, embeddings.folder.address
    if set(tasks) != {"retrieval"} or columns:
        asked = " ".join(tasks) if set(tasks) != {"retrieval"} else f"retrieval by {' '.join(columns)}"
        raise UsageError(
            f"--embeddings {name}: features alone are enough for retrieval by captions, not for {asked}: "
            "leave the flag out"
        )
    if set(manifest.parts) != {"image", "text"}:
        raise UsageError(
            f"--embeddings {name}: retrieval needs features of images and captions, here are those of "
            f"{' and '.join(manifest.parts)}: embed the data without --only"
        )
    if manifest.data.fingerprint != whole.manifest.fingerprint:
        raise UsageError(
            f"--embeddings {name}: they are of other data ({manifest.data.address}) than "
            f"{whole.folder.address}, or these have changed: embed them anew, or leave --data out"
        )
    if (found := model_fingerprint(opened.model, opened.tokenizer)) != manifest.model.fingerprint:
        raise UsageError(
            f"--embeddings {name}: they are of another model ({manifest.model.checkpoint}, "
            f"{manifest.model.fingerprint}) than {opened.source} ({found}): embed the data anew, or leave "
            "--checkpoint out"
        )
    if manifest.left_out:
        raise UsageError(
            f"--embeddings {name}: {counted(len(manifest.left_out), 'sample')} were left out of them, such "
            f"as {manifest.left_out[0].reason}: pack the data anew without these ('python -m pipeline.shard' "
            "leaves them out), and embed that"
        )
    if whole.manifest.member_names.caption_lines:
        raise UsageError(
            f"--embeddings {name}: samples of {whole.folder.address} have several captions, and embeddings "
            "hold the first alone: leave the flag out"
        )


def ready_features(embeddings: Embeddings, whole: Dataset, dataset: Dataset, topology: Topology) -> Features:
    """This rank's share of the samples of `dataset`: the data set that was embedded, or a view on it."""
    rows = np.arange(len(whole))
    if dataset is not whole:
        assert dataset.selected is not None
        rows = np.flatnonzero(
            dataset.selected if whole.selected is None else dataset.selected[whole.selected]
        )
    rank, world_size = topology.rank, topology.world_size
    own = rows[rank * len(rows) // world_size : (rank + 1) * len(rows) // world_size]
    keys, captions = embeddings.keys, embeddings.captions
    return Features(
        image=_read(embeddings, "image", own),
        text=_read(embeddings, "text", own),
        captions=np.ones(len(own), np.int64),
        caption_hashes=np.array([text_hash(captions[row]) for row in own], np.uint64),
        keys=[keys[row] for row in own],
        columns={},
    )


def _read(embeddings: Embeddings, part: Part, numbers: np.ndarray) -> FeatureRows:
    features = embeddings.features(part)
    rows = FeatureRows(features.width)
    for start in range(0, len(numbers), _AT_A_TIME):
        chosen = torch.from_numpy(features.take(numbers[start : start + _AT_A_TIME])).float()
        rows.append(chosen if features.dtype == np.float32 else F.normalize(chosen, dim=-1))
    return rows
