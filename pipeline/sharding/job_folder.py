"""The output of a packing job: whose it is, what is in it already, and what may be removed.

The job's own files (plan.json, rejected.csv, the report) lie in its root; each data set lies in a folder
below it, named after its split, or in the root itself where there are no splits. Beside a finished shard lies
its description (NAME.part.json) until the manifest says the same.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.sharding.packing import PackedShard, part_name
from shards import DataError, Folder, Manifest, UsageError
from shards.manifest import CHECKSUMS, INDEX, MANIFEST, SELECTED

PLAN, REJECTED, REPORT, DUPLICATES = "plan.json", "rejected.csv", "dataset_report.html", "duplicates.bin"
# The tars that this tool describes were there before it.
INDEXING_TOOL = "pipeline.index"
_OF_JOB = (PLAN, REJECTED, REPORT, DUPLICATES)
_OF_DATA_SET = (MANIFEST, INDEX, CHECKSUMS, SELECTED)
_HASHES = r"hashes-\d{6,}\.bin"


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
            self._spare_tars_of_others()
            self._delete_data_sets(identity)
        else:
            self.check_free(identity)
        if PLAN not in self.root.names():
            self.root.write(PLAN, json.dumps(identity, indent=1).encode() + b"\n")

    def check_free(self, identity: dict[str, Any]) -> None:
        """Raise UsageError where the folder holds something other than this job's data set, finished or
        begun.
        """
        theirs = self._identity_there()
        if theirs is not None and theirs != identity:
            differing = (
                _difference(key, theirs.get(key), identity.get(key))
                for key in {**theirs, **identity}
                if theirs.get(key) != identity.get(key)
            )
            raise self._refused("; ".join(differing))
        if theirs is None:
            for folder in self.data_sets:
                tars = [name for name in folder.names() if name.endswith(".tar")]
                if tars:
                    raise self._refused(
                        f"{len(tars):,} tar files that are not of this job, such as {tars[0]}"
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
        rows were rejected.
        """
        folder = self.data_sets[split]
        there = set(folder.names())
        described = {
            f"{name.removesuffix('.part.json')}.tar" for name in there if name.endswith(".part.json")
        }
        absent = sorted(described - there)
        empty = {
            part.written.record.name for part in self.parts(split, absent) if not part.written.record.samples
        }
        return described & there | empty

    def parts(self, split: int, shard_names: Iterable[str]) -> list[PackedShard]:
        """The descriptions of these shards of a split, in their order."""
        folder = self.data_sets[split]
        with ThreadPoolExecutor(16) as threads:  # an object store answers slowly, but many at a time
            return list(
                threads.map(
                    lambda name: PackedShard.from_json(
                        folder.read(part_name(name)), folder.locate(part_name(name))
                    ),
                    shard_names,
                )
            )

    def delete_leftovers(self, split: int, shard_names: Iterable[str], *, alone: bool) -> None:
        """Remove what a run that was killed left in the middle of writing these shards: temporary files, and
        uploads that were never completed. alone: no other task is at work here, so none of theirs are missed.
        """
        own = {name for shard in shard_names for name in (shard, part_name(shard))}
        for folder in {self.data_sets[split], self.root} if alone else {self.data_sets[split]}:
            for name in folder.names():
                target = re.fullmatch(r"\.(.+)\.[^.]+\.tmp", name)
                if target and (target[1] in own or (alone and _is_of_job(target[1]))):
                    folder.delete(name)
        self.data_sets[split].abort_uploads(sorted(own))

    def delete_parts(self) -> None:
        """Remove what only an unfinished job needs."""
        for folder in {self.root, *self.data_sets}:
            for name in folder.names():
                if _ours(folder, name, "part.json") or re.fullmatch(_HASHES, name):
                    folder.delete(name)

    def _spare_tars_of_others(self) -> None:
        """Raise UsageError where tars lie that others made, some of them perhaps named as this tool names its
        own.
        """
        for folder in self.data_sets:
            try:
                made_by = Manifest.from_json(folder.read(MANIFEST), folder.locate(MANIFEST)).made_by
            except (FileNotFoundError, DataError):
                continue
            if made_by.get("tool") == INDEXING_TOOL:
                raise UsageError(
                    f"{folder.address} holds tars that others made, described by {INDEXING_TOOL}: they are "
                    "not replaced; choose another --out"
                )

    def _identity_there(self) -> dict[str, Any] | None:
        """What the folder holds, finished or begun; None where that is nothing."""
        try:
            plan: dict[str, Any] = json.loads(self.root.read(PLAN))
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

    def _delete_data_sets(self, identity: dict[str, Any]) -> None:
        """Remove every file of a job, the manifests first: without it there is no data set."""
        for folder in {
            folder.address: folder for folder in [*self.data_sets, *self._their_data_sets()]
        }.values():
            for name in _data_set_files(folder):
                folder.delete(name)
        for name in self.root.names():
            if _is_of_job(name) or re.fullmatch(_HASHES, name):
                self.root.delete(name)

    def _their_data_sets(self) -> list[Folder]:
        """The folders of the job that was here before, which may have had other splits."""
        try:
            theirs = self._identity_there() or {}
        except DataError:
            return []
        splits = [part.partition("=")[0] for part in (theirs.get("split") or "").split(",") if part]
        return JobFolder(self.root, splits).data_sets


def _difference(key: str, theirs: object, ours: object) -> str:
    if key == "rows_sha256":
        return "other rows in the table"
    shown = ("none" if value is None else value for value in (theirs, ours))
    return "{} {} there, {} here".format(key, *shown)


def _data_set_files(folder: Folder) -> Iterator[str]:
    """The files that packing writes for one data set, the manifest first."""
    names = folder.names()
    listed: set[str] = set()
    if MANIFEST in names:
        try:
            manifest = Manifest.from_json(folder.read(MANIFEST), folder.locate(MANIFEST))
        except DataError:  # damaged: what its shards were called is lost
            manifest = None
        if manifest and manifest.made_by.get("tool") != INDEXING_TOOL:
            listed = {shard.name for shard in manifest.shards if not shard.folder}  # other names if renamed
    yield from (name for name in _OF_DATA_SET if name in names)
    for name in names:
        temporary = re.fullmatch(r"\.(.+)\.[^.]+\.tmp", name)
        target = temporary[1] if temporary else name
        if target in listed or _ours(folder, target, "tar|part.json") or (temporary and _is_of_job(target)):
            yield name


def _is_of_job(name: str) -> bool:
    return name in _OF_JOB or name in _OF_DATA_SET


def _ours(folder: Folder, name: str, extensions: str) -> bool:
    """Whether a file is called as a shard of this folder is, with one of these extensions."""
    return bool(re.fullmatch(rf"{re.escape(folder.name)}-\d{{6,}}\.({extensions})", name))
