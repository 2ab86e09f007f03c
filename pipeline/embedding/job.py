"""A job's folder of embeddings: begun, gone on with, and finished."""

import re
from collections.abc import Sequence
from dataclasses import replace

from pipeline.embedding.manifest import MANIFEST, EmbeddingsManifest
from pipeline.embedding.pieces import count_rows, finished_pieces, is_piece_file
from pipeline.embedding.reader import read_manifest
from shards import Folder, UsageError

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")  # as local files are called while they are written
INDEX_PREFIX = "index-"
"""Of the files that searching keeps beside the embeddings."""


def begin(folder: Folder, manifest: EmbeddingsManifest, *, overwrite: bool) -> list[int]:
    """Make the folder ready for these embeddings; the pieces that are missing in it.

    Raises UsageError where it holds others, unless `overwrite` removes them.
    """
    names = folder.names()
    pieces = [name for name in names if is_piece_file(name)]
    before = None if overwrite else read_manifest(folder)
    if before:
        if differences := manifest.differences(before):
            raise UsageError(
                f"{folder.address}: holds other embeddings, asked for are: {'; '.join(differences)}; give "
                "another --out, or --overwrite to replace them"
            )
        whole = finished_pieces(names)
        return [number for number in range(manifest.pieces) if number not in whole]
    if pieces and not overwrite:
        raise UsageError(
            f"{folder.address}: holds pieces of embeddings ({pieces[0]}) without their {MANIFEST}; give "
            "another --out, or --overwrite to replace them"
        )
    # The manifest that says what pieces are comes last: one that stays must never vouch for new pieces.
    for name in pieces + [name for name in names if name.startswith(INDEX_PREFIX)]:
        folder.delete(name)
    folder.write(MANIFEST, manifest.to_json())
    return list(range(manifest.pieces))


def finish(folder: Folder, manifest: EmbeddingsManifest) -> EmbeddingsManifest:
    """Complete the manifest from the pieces, all of which are there."""
    rows, left_out = [], []
    for number in range(manifest.pieces):
        count, missing = count_rows(folder, number)
        rows.append(count)
        left_out += missing
    _remove_leftovers(folder)
    finished = replace(manifest, rows=rows, left_out=left_out)
    folder.write(MANIFEST, finished.to_json())
    return finished


def _remove_leftovers(folder: Folder) -> None:
    """Delete what killed processes left of pieces that they were writing."""
    for name in folder.names():
        found = _TEMPORARY.fullmatch(name)
        if found and is_piece_file(found[1]):
            folder.delete(name)


def merge_spans(manifest: EmbeddingsManifest, pieces: Sequence[int]) -> list[tuple[int, int]]:
    """The samples of ascending pieces as spans, neighbours joined."""
    spans: list[tuple[int, int]] = []
    for start, stop in map(manifest.span, pieces):
        if spans and spans[-1][1] == start:
            spans[-1] = spans[-1][0], stop
        else:
            spans.append((start, stop))
    return spans
