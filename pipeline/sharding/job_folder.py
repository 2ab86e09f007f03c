"""The output of a packing job: whose it is, what is in it already, and what may be removed.

The job's own files (plan.json, rejected.csv, the report) lie in its root; each data set lies in a folder
below it, named after its split, or in the root itself where there are no splits. Beside a finished shard lies
its description (NAME.part.json) until the manifest says the same.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pipeline.sharding.packing import PackedShard, part_name
from pipeline.sharding.read_ahead import read_ahead
from shards import DataError, Folder, Manifest, UsageError
from shards.manifest import CHECKSUMS, INDEX, MANIFEST, SELECTED

PLAN, REJECTED, REPORT, DUPLICATES = "plan.json", "rejected.csv", "dataset_report.html", "duplicates.bin"
# The tars that this tool describes were there before it.
INDEXING_TOOL = "pipeline.index"
_OF_JOB = (PLAN, REJECTED, REPORT, DUPLICATES)
_OF_DATA_SET = (MANIFEST, INDEX, CHECKSUMS, SELECTED)
_HASHES = r"hashes-\d{6,}\.bin"
_TEMPORARY = r"\.(.+)\.[^.]+\.tmp"
# Key of plan.json while --overwrite removes a job; its value is what that job was.
_BEING_REPLACED = "being_replaced"
_THREADS = 16  # an object store answers slowly, but many at a time


class JobFolder:
    """The root of a job's output and the folders of its data sets, one for each split (the root itself where
    there are none).
    """

    def __init__(self, root: Folder, splits: Sequence[str] = ()) -> None:
        self.root = root
        self.data_sets = [Folder(root.locate(split)) for split in splits] or [root]

    def shard_name(self, split: int, number: int) -> str:
        """How the shard of this number in this split is called."""
        return f"{self.data_sets[split].name}-{number:06d}.tar"

    def claim(self, identity: dict[str, Any], *, overwrite: bool) -> None:
        """Take the folder for a job; what an earlier run of the same job left is kept.

        identity: what the output follows from. Raises UsageError where the folder holds something else.
        """
        if overwrite:
            self._delete_data_sets()
        else:
            self.check_free(identity)
        if overwrite or PLAN not in self.root.names():
            self.root.write(PLAN, _plan_text(identity))

    def check_free(self, identity: dict[str, Any]) -> None:
        """Raise UsageError where the folder holds something other than this job's data set, finished or
        begun.
        """
        theirs = self._identity_there()
        if theirs is not None and _BEING_REPLACED in theirs:
            raise UsageError(
                f"{self.root.address}: an earlier --overwrite was interrupted while it removed the data set "
                "that was there: give --overwrite again"
            )
        if theirs is not None and theirs != identity:
            differing = (
                _difference(key, theirs.get(key), identity.get(key))
                for key in {**theirs, **identity}
                if theirs.get(key) != identity.get(key)
            )
            raise self._refused("; ".join(differing))
        if theirs is None:
            for folder in self.data_sets:
                shards = [name for name in folder.names() if name.endswith((".tar", ".part.json"))]
                if shards:
                    raise self._refused(
                        f"{len(shards):,} tar files or their descriptions that are not of this job, such as "
                        f"{shards[0]}"
                    )

    def manifests(self) -> list[Manifest] | None:
        """The manifests of all data sets; None where one is missing."""
        try:
            return [
                Manifest.from_json(folder.read(MANIFEST), folder.locate(MANIFEST))
                for folder in self.data_sets
            ]
        except FileNotFoundError:
            return None

    def finished(self, split: int) -> set[str]:
        """The names of a split's whole shards: those with a description, and a tar, too, unless all of their
        rows were rejected. Once the manifests are there, the descriptions go.
        """
        folder = self.data_sets[split]
        there = set(folder.names())
        described = {
            f"{name.removesuffix('.part.json')}.tar" for name in there if name.endswith(".part.json")
        }
        empty = set()
        with suppress(FileNotFoundError):  # another task has written the manifests
            for part in self.parts(split, sorted(described - there)):
                if not part.written.record.samples:
                    empty.add(part.written.record.name)
        return described & there | empty

    def parts(self, split: int, shard_names: Iterable[str]) -> Iterator[PackedShard]:
        """The descriptions of these shards of a split, in their order, of which a few are in memory."""
        folder = self.data_sets[split]

        def read(name: str) -> PackedShard:
            return PackedShard.from_json(folder.read(part_name(name)), folder.locate(part_name(name)))

        return read_ahead(read, shard_names)

    def delete_leftovers(self, split: int, shard_names: Iterable[str], *, alone: bool) -> None:
        """Remove what a run that was killed left in the middle of writing these shards: temporary files, and
        uploads that were never completed. alone: no other task is at work here, so none of theirs are missed.
        """
        own = {name for shard in shard_names for name in (shard, part_name(shard))}
        for folder in {self.data_sets[split], self.root} if alone else {self.data_sets[split]}:
            for name in folder.names():
                target = _temporary_of(name)
                if target and (target in own or (alone and _ours(folder, target))):
                    folder.delete(name)
        self.data_sets[split].abort_uploads(sorted(own))

    def clean_up(self) -> None:
        """Remove what only an unfinished job needs, and all that killed processes left. Every shard is to be
        there: a task that still writes one of these files fails, which loses nothing.
        """
        for folder in {self.root, *self.data_sets}:
            names = folder.names()
            _delete(folder, (name for name in names if _is_of_work(folder, name)))
            folder.abort_uploads([name for name in names if _ours(folder, name)])

    def _identity_there(self) -> dict[str, Any] | None:
        """What the folder holds, finished or begun; None where that is nothing."""
        try:
            plan = json.loads(self.root.read(PLAN))
            if not isinstance(plan, dict):
                raise ValueError
            return plan
        except FileNotFoundError:
            pass
        except ValueError:
            raise DataError(
                f"{self.root.locate(PLAN)}: damaged; what lies there cannot be told: replace it with "
                "--overwrite"
            ) from None
        for folder in self.data_sets:
            if MANIFEST in folder.names():
                return Manifest.from_json(folder.read(MANIFEST), folder.locate(MANIFEST)).made_by
        return None

    def _refused(self, what: str) -> UsageError:
        return UsageError(
            f"{self.root.address} holds another data set ({what}): choose another --out, or replace it with "
            "--overwrite"
        )

    def _delete_data_sets(self) -> None:
        """Remove every file of the job that was here but plan.json, which says meanwhile that nothing of what
        is left may be taken for a part of a job, should this be interrupted.
        """
        try:
            theirs = self._identity_there() or {}
        except DataError:
            theirs = {}
        theirs = theirs.get(_BEING_REPLACED, theirs)
        splits = [part.partition("=")[0] for part in (theirs.get("split") or "").split(",") if part]
        folders = {f.address: f for f in [*self.data_sets, *JobFolder(self.root, splits).data_sets]}.values()
        listed = [_listed_shards(folder) for folder in folders]
        self.root.write(PLAN, _plan_text({_BEING_REPLACED: theirs}))
        for folder, shards in zip(folders, listed, strict=True):
            _delete(folder, shards)  # first: only the manifest tells their names
            folder.delete(MANIFEST)
            names = folder.names()
            _delete(folder, [n for n in names if n != PLAN and _ours(folder, _temporary_of(n) or n)])
            folder.abort_uploads([name for name in names if _ours(folder, name)])
        names = self.root.names()
        _delete(self.root, [n for n in names if n != PLAN and _is_of_job(_temporary_of(n) or n)])


def _plan_text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"


def _difference(key: str, theirs: object, ours: object) -> str:
    if key == "rows_sha256":
        return "other rows in the table"
    shown = ("none" if value is None else value for value in (theirs, ours))
    return "{} {} there, {} here".format(key, *shown)


def _delete(folder: Folder, names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(folder.delete, names):
            pass


def _listed_shards(folder: Folder) -> set[str]:
    """The shards that the folder's manifest lists, named after the folder as it was called then. Raises
    UsageError where others made them.
    """
    try:
        manifest = Manifest.from_json(folder.read(MANIFEST), folder.locate(MANIFEST))
    except (FileNotFoundError, DataError):  # damaged: what its shards were called is lost
        return set()
    if manifest.made_by.get("tool") == INDEXING_TOOL:
        raise UsageError(
            f"{folder.address} holds tars that others made, described by {INDEXING_TOOL}: they are not "
            "replaced; choose another --out"
        )
    return {shard.name for shard in manifest.shards if not shard.folder}


def _is_of_job(name: str) -> bool:
    """Whether a job writes a file of this name into its root."""
    return name in _OF_JOB or bool(re.fullmatch(_HASHES, name))


def _ours(folder: Folder, name: str) -> bool:
    """Whether packing writes a file of this name into this folder, as a job's root or as a data set's."""
    shard = rf"{re.escape(folder.name)}-\d{{6,}}\.(tar|part\.json)"
    return name in _OF_DATA_SET or _is_of_job(name) or bool(re.fullmatch(shard, name))


def _is_of_work(folder: Folder, name: str) -> bool:
    """Whether only an unfinished job needs this file: a description, hashes, a temporary file."""
    if target := _temporary_of(name):
        return _ours(folder, target)
    return bool(re.fullmatch(_HASHES, name)) or (_ours(folder, name) and name.endswith(".part.json"))


def _temporary_of(name: str) -> str | None:
    """The file for which this one is the temporary file; None if it is none."""
    found = re.fullmatch(_TEMPORARY, name)
    return found[1] if found else None
