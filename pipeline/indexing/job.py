"""Describing many tars as one data set: in parallel, resumable, and never touching the tars themselves."""

import os
import posixpath
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.checks import output_folder
from pipeline.indexing.describe_shard import DescribedShard, describe_shard
from pipeline.indexing.parts import delete_parts, read_parts, write_part
from pipeline.indexing.report import printable, unmapped_advice, unusable_csv
from pipeline.indexing.shard_files import ShardFile, find_shards
from pipeline.job_progress import MEGABYTES, JobProgress
from pipeline.sharding.worker_pool import run_in_processes
from pipeline.wording import counted
from shards import DataError, Folder, Manifest, MemberNames, UsageError, write_manifest
from shards.manifest import CHECKSUMS, INDEX, MANIFEST, SELECTED
from shards.references import make_reference

TOOL = "pipeline.index"
REJECTED = "rejected.csv"
# So many samples without one that could be used: the flags do not fit these tars.
_ENOUGH_TO_TELL = 20_000


class NothingUsable(DataError):
    """No sample of the shards can be used as the flags say."""


@dataclass(frozen=True)
class IndexedShards:
    """A finished job: the data set's folder and manifest, and what was found in every shard."""

    out: Folder
    manifest: Manifest
    described: list[DescribedShard]


def index_shards(
    patterns: Sequence[str],
    out: str | None,
    names: MemberNames,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> IndexedShards | None:
    """Describe the tars that `patterns` name as a data set in the folder `out` (theirs, unless given).

    None where that was done before. Raises UsageError where a pattern, the folder or a compressed tar is
    refused, DataError, naming every damaged shard, where some are damaged or no sample can be used; what was
    found in the others is kept for the next run.
    """
    if not patterns:
        raise UsageError("--shards: give at least one tar, pattern or folder")
    files = find_shards(patterns)
    folder = _output_folder(files, out)
    if overwrite:
        for name in (MANIFEST, INDEX, CHECKSUMS, SELECTED, REJECTED):
            folder.delete(name)
        delete_parts(folder)
    elif MANIFEST in folder.names():
        _check_same(folder, files, names)
        return None
    _check_writable(folder)
    return describe_shards(files, folder, names, partial(make_reference, folder), workers=workers)


def describe_shards(
    files: Sequence[ShardFile],
    out: Folder,
    names: MemberNames,
    refer: Callable[[Folder], str],
    *,
    workers: int | None = None,
    shared_parts: Folder | None = None,
) -> IndexedShards:
    """Describe tars as a data set in the folder `out`, which has none.

    refer: how the manifest is to name a shard's folder. shared_parts: where what is found in each shard is
    kept for good, for the next data set that has it, too; without it, it is kept in `out` until all is done.
    Raises what `index_shards` does.
    """
    parts = shared_parts or out
    found = read_parts(parts, files, names)
    missing = [file for file in files if file not in found]
    done = sum(file.size for file in found)
    try:
        found |= _describe_all(parts, missing, names, workers, progress_before=done)
        described = [found[file] for file in files]
        _check_usable(described, names)
    except NothingUsable:
        if not shared_parts:
            delete_parts(out)
        raise
    manifest = _write(out, files, described, names, refer)
    if not shared_parts:
        delete_parts(out)
    return IndexedShards(out, manifest, described)


def _output_folder(files: Sequence[ShardFile], out: str | None) -> Folder:
    if out is not None:
        return output_folder("--out", out)
    folders = sorted({file.folder.address for file in files})
    if len(folders) > 1:
        raise UsageError(
            f"the shards lie in {len(folders):,} folders ({folders[0]}, {folders[1]}, …): say with --out "
            "where the manifest is to lie"
        )
    return files[0].folder


def _check_writable(out: Folder) -> None:
    """Find out before the long work whether its result can be written."""
    probe = "index.part.json"
    try:
        out.write(probe, b"")
        out.delete(probe)
    except DataError as error:
        raise UsageError(f"{error}; give --out a folder that you may write to") from error


def _check_same(out: Folder, files: Sequence[ShardFile], names: MemberNames) -> None:
    """Raise UsageError where the manifest in a folder is not what this job would write."""
    address = out.locate(MANIFEST)
    try:
        manifest = Manifest.from_json(out.read(MANIFEST), address)
    except DataError as error:
        raise UsageError(f"{error}: choose another --out, or replace it with --overwrite") from error
    if manifest.made_by.get("tool") != TOOL:
        raise UsageError(
            f"{address} was made by {manifest.made_by.get('tool', 'something else')}: these shards have a "
            "manifest; choose another --out, or replace it with --overwrite"
        )
    differences = [*_differing_names(manifest.member_names, names), *differing_shards(out, manifest, files)]
    if differences:
        more = f" and {len(differences) - 3:,} more differences" if len(differences) > 3 else ""
        raise UsageError(
            f"{address} describes other data ({'; '.join(differences[:3])}{more}): choose another --out, or "
            "replace it with --overwrite"
        )


def _differing_names(theirs: MemberNames, ours: MemberNames) -> Iterator[str]:
    """What distinguishes the members that a manifest takes for images and captions from these."""
    if theirs.image_extensions != ours.image_extensions:
        there, here = (",".join(names.image_extensions) for names in (theirs, ours))
        yield f"images are {there} there and {here} here"
    if theirs.caption_place != ours.caption_place:
        yield f"captions are in {theirs.caption_place} there and in {ours.caption_place} here"


def differing_shards(out: Folder, manifest: Manifest, files: Sequence[ShardFile]) -> Iterator[str]:
    """What distinguishes the shards that the manifest in a folder lists from these; nothing where they are
    the same.
    """
    place = partial(_place, refer=partial(make_reference, out))
    theirs = {posixpath.join(record.folder, record.name): record.bytes for record in manifest.shards}
    theirs |= manifest.made_by.get("empty_shards", {})
    ours = {place(file): file.size for file in files}
    for address in {**theirs, **ours}:
        if address not in theirs:
            yield f"{address} is new"
        elif address not in ours:
            yield f"{address} is not among these shards"
        elif theirs[address] != ours[address]:
            yield f"{address} had {theirs[address]:,} bytes and has {ours[address]:,}"


def _describe_all(
    parts: Folder,
    files: Sequence[ShardFile],
    names: MemberNames,
    workers: int | None,
    progress_before: int,
) -> dict[ShardFile, DescribedShard]:
    """Describe shards in worker processes, keeping each as it is done."""
    found: dict[ShardFile, DescribedShard] = {}
    failed: list[str] = []
    samples = usable = 0
    work = partial(_describe_and_keep, parts=parts, names=names)
    count = max(1, min(workers or len(os.sched_getaffinity(0)), len(files)))
    results = run_in_processes(work, files, count) if count > 1 else map(work, files)
    with JobProgress(
        progress_before + sum(file.size for file in files), progress_before, MEGABYTES
    ) as progress:
        for file, result in results:
            progress.advance(file.size)
            if isinstance(result, str):
                failed.append(result)
                continue
            found[file] = result
            samples += result.written.record.samples
            usable += result.written.record.samples - len(result.unusable)
            if samples >= _ENOUGH_TO_TELL and not usable:
                _check_usable(list(found.values()), names)
    if failed:
        for message in sorted(failed):
            print(message, file=sys.stderr)
        raise DataError(
            f"{len(failed):,} of {counted(len(files), 'shard')} could not be described, such as "
            f"{min(failed)}; what was found in the others is kept: run the same command again when that is "
            "mended, or leave them out"
        )
    return found


def _describe_and_keep(
    file: ShardFile, parts: Folder, names: MemberNames
) -> tuple[ShardFile, DescribedShard | str]:
    """Describe one shard in a worker process; in place of that, what went wrong with it."""
    try:
        described = describe_shard(file, names)
    except UsageError:
        raise
    except DataError as error:
        return file, str(error)
    write_part(parts, file, names, described)
    return file, described


def _check_usable(described: Sequence[DescribedShard], names: MemberNames) -> None:
    """Raise NothingUsable where no sample of the shards can be used."""
    samples = sum(shard.written.record.samples for shard in described)
    unusable = [bad for shard in described for bad in shard.unusable]
    if len(unusable) < samples:
        return
    if not samples:
        raise NothingUsable(f"no sample in {counted(len(described), 'shard')}: nothing but empty tars")
    reasons = Counter(bad.reason for bad in unusable)
    told = ", ".join(f"{count:,} times: {reason}" for reason, count in reasons.most_common())
    example = f"{printable(unusable[0].key)} in {described[0].written.record.name}"
    raise NothingUsable(
        "; ".join(
            [
                f"none of {samples:,} samples can be used ({told}; the first is {example})",
                *unmapped_advice(described, names),
            ]
        )
    )


def _write(
    out: Folder,
    files: Sequence[ShardFile],
    described: Sequence[DescribedShard],
    names: MemberNames,
    refer: Callable[[Folder], str],
) -> Manifest:
    """Write the description of all shards."""
    usable = np.ones(sum(shard.written.record.samples for shard in described), bool)
    first = 0
    for shard in described:
        usable[[first + bad.sample for bad in shard.unusable]] = False
        first += shard.written.record.samples
    empty = {
        _place(file, refer): file.size
        for file, shard in zip(files, described, strict=True)
        if not shard.written.record.samples
    }
    made_by: dict[str, Any] = {"tool": TOOL, "left_out": int((~usable).sum()), "empty_shards": empty}
    out.write(REJECTED, unusable_csv(described))
    return write_manifest(
        out,
        [
            replace(shard.written, record=replace(shard.written.record, folder=refer(file.folder)))
            for file, shard in zip(files, described, strict=True)
        ],
        made_by,
        member_names=names,
        selected=None if usable.all() else usable,
    )


def _place(file: ShardFile, refer: Callable[[Folder], str]) -> str:
    """Where a shard lies, as a manifest says it."""
    return posixpath.join(refer(file.folder), file.name)
