"""The output folder of a sharding job: whose it is, what is in it already, and what may be removed."""

import json
import re
from typing import Any

from shards import Folder, Manifest, UsageError
from shards.manifest import CHECKSUMS, INDEX, MANIFEST

PLAN, REJECTED = "plan.json", "rejected.csv"


def prepare_folder(out: Folder, identity: dict[str, Any], *, overwrite: bool) -> bool:
    """Make the output folder ready for this job; False where the job is done already.

    Raises UsageError where the folder holds another data set.
    """
    names = out.names()
    if overwrite:
        for name in _ours(out, names):
            out.delete(name)
        names = []
    theirs = None
    if MANIFEST in names:
        theirs = Manifest.from_json(out.read(MANIFEST), out.locate(MANIFEST)).made_by
    elif PLAN in names:
        theirs = json.loads(out.read(PLAN))
    elif tars := [name for name in names if name.endswith(".tar")]:
        theirs = {"files": f"{len(tars)} tar files that are not of this job, such as {tars[0]}"}
    if theirs is not None and theirs != identity:
        differing = [
            f"{key} {theirs.get(key, 'none')} there, {identity.get(key, 'none')} here"
            for key in {**theirs, **identity}
            if theirs.get(key) != identity.get(key)
        ]
        raise UsageError(
            f"{out.address} holds another data set ({'; '.join(differing)}): choose another --out, or "
            "replace it with --overwrite"
        )
    _delete_leftovers(out)
    if MANIFEST in names:
        delete_parts(out)
        return False
    if PLAN not in names:
        out.write(PLAN, json.dumps(identity).encode())
    return True


def _ours(out: Folder, names: list[str]) -> list[str]:
    """The files of a folder that this command writes, the manifest first: without it there is no data set."""
    shard = re.compile(re.escape(out.name) + r"-\d{6,}\.(tar|part\.json)")
    fixed = (MANIFEST, INDEX, CHECKSUMS, PLAN, REJECTED)
    return [n for n in fixed if n in names] + [n for n in names if shard.fullmatch(n)]


def _delete_leftovers(out: Folder) -> None:
    """Remove the temporary files of a run that was killed while writing."""
    for name in out.names():
        if name.startswith(".") and name.endswith(".tmp"):
            out.delete(name)


def delete_parts(out: Folder) -> None:
    """Remove what only an unfinished job needs."""
    for name in out.names():
        if name.endswith(".part.json") or name == PLAN:
            out.delete(name)
