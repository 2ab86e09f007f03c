"""The output folder of a sharding job: whose it is, what is in it already, and what may be removed."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.sharding.packing import PackedShard, part_name
from shards import DataError, Folder, Manifest, UsageError
from shards.manifest import CHECKSUMS, INDEX, MANIFEST

TOOL = "pipeline.shard"
PLAN, REJECTED = "plan.json", "rejected.csv"
_FIXED = (MANIFEST, INDEX, CHECKSUMS, PLAN, REJECTED)


def prepare_folder(out: Folder, identity: dict[str, Any], *, overwrite: bool) -> bool:
    """Make the output folder ready for this job; False where the job is done already.

    identity: what the output follows from, as the plan and then the manifest keep it. Raises UsageError where
    the folder holds another data set.
    """
    if overwrite:
        for name in _data_set_files(out):
            out.delete(name)
    names = out.names()
    theirs = _identity_there(out, names)
    tars = [name for name in names if name.endswith(".tar")]
    if theirs is not None and theirs != identity:
        differing = (
            _difference(key, theirs.get(key, "none"), identity.get(key, "none"))
            for key in {**theirs, **identity}
            if theirs.get(key) != identity.get(key)
        )
        raise _refused(out, "; ".join(differing))
    if theirs is None and tars and not overwrite:
        raise _refused(out, f"{len(tars):,} tar files that are not of this job, such as {tars[0]}")
    _delete_leftovers(out, names)
    if MANIFEST in names:
        delete_parts(out)
        return False
    if PLAN not in names:
        out.write(PLAN, json.dumps(identity).encode())
    return True


def _identity_there(out: Folder, names: list[str]) -> dict[str, Any] | None:
    """What the folder holds, finished or begun; None where that is nothing."""
    if MANIFEST in names:
        return Manifest.from_json(out.read(MANIFEST), out.locate(MANIFEST)).made_by
    if PLAN in names:
        plan: dict[str, Any] = json.loads(out.read(PLAN))
        return plan
    return None


def _refused(out: Folder, what: str) -> UsageError:
    return UsageError(
        f"{out.address} holds another data set ({what}): choose another --out, or replace it with --overwrite"
    )


def _difference(key: str, theirs: object, ours: object) -> str:
    if key == "rows_sha256":
        return "other rows in the table"
    return f"{key} {theirs} there, {ours} here"


def read_parts(out: Folder, shard_names: list[str]) -> dict[str, PackedShard]:
    """The shards among these that an earlier run finished, by name."""
    there = set(out.names())
    parts = [part_name(name) for name in shard_names if part_name(name) in there]
    with ThreadPoolExecutor(16) as threads:  # an object store answers slowly, but many at a time
        packed = [PackedShard.from_json(text) for text in threads.map(out.read, parts)]
    named = {shard.written.record.name: shard for shard in packed}
    return {name: p for name, p in named.items() if name in there or not p.written.record.samples}


def delete_parts(out: Folder) -> None:
    """Remove what only an unfinished job needs."""
    for name in out.names():
        if name == PLAN or _ours(out, name, "part.json"):
            out.delete(name)


def _data_set_files(out: Folder) -> Iterator[str]:
    """The files that this command writes, the manifest first: without it there is no data set."""
    names = out.names()
    listed: set[str] = set()
    if MANIFEST in names:
        try:
            manifest = Manifest.from_json(out.read(MANIFEST), out.locate(MANIFEST))
        except DataError:  # damaged: what its shards were called is lost
            manifest = None
        if manifest and manifest.made_by.get("tool") == TOOL:
            listed = {shard.name for shard in manifest.shards}  # of another name if the folder was renamed
    yield from (name for name in _FIXED if name in names)
    yield from (name for name in names if name in listed or _ours(out, name, "tar|part.json"))


def _delete_leftovers(out: Folder, names: list[str]) -> None:
    """Remove the temporary files of a run that was killed while writing."""
    for name in names:
        target = re.fullmatch(r"\.(.+)\.[^.]+\.tmp", name)
        if target and (target[1] in _FIXED or _ours(out, target[1], "tar|part.json")):
            out.delete(name)


def _ours(out: Folder, name: str, extensions: str) -> bool:
    """Whether a file is called as a shard of this folder is, with one of these extensions."""
    return bool(re.fullmatch(rf"{re.escape(out.name)}-\d{{6,}}\.({extensions})", name))
