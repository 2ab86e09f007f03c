"""Packing chosen samples into new shards, shuffled over all of them.

A new sample's key is its place, its image has the extension of its true format, its caption is `txt` (a line
for each, where samples may have several). The
other members stay as they are, but for two things: the `.json` gains the old key under "key", unless it holds
one already; and a member that would now be taken for the image or caption is called `other.EXTENSION`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.job_progress import JobProgress, Unit
from pipeline.selection.filtering import parse_columns
from pipeline.sharding.account import RejectedRows, gather
from pipeline.sharding.job import FinishedDataSet, Stopped
from pipeline.sharding.job_folder import REJECTED, JobFolder
from pipeline.sharding.packing import Treatment, write_described
from pipeline.sharding.plan import PackingPlan, PlannedShard
from pipeline.sharding.read_ahead import read_ahead
from pipeline.sharding.rows import Rejected, RejectedRow
from pipeline.sharding.statistics import Taken
from pipeline.sharding.transcode import process_image
from pipeline.sharding.worker_pool import run_in_processes, sigterm_waits
from shards import (
    DamagedSample,
    DataError,
    Dataset,
    Folder,
    MemberNames,
    Sample,
    SamplePlace,
    write_manifest,
)

DAMAGED = "damaged sample"  # the reason of one that is not what its data set says

_NEW_NAMES = MemberNames()
_TAKEN_EXTENSIONS = {*_NEW_NAMES.image_extensions, _NEW_NAMES.caption_extension}
_LONGEST_EXTENSION = 80  # bytes; with the key, a member's name has to fit into a tar header's 100


@dataclass(frozen=True)
class RewritingTask:
    """The samples of one new shard in their new order: their numbers among all, and where they lie."""

    folder: Folder
    name: str
    first_slot: int
    numbers: list[int]
    places: list[SamplePlace]


class Rewriting:
    """A job that packs all samples of some data sets, as numbered one after the other, into one folder."""

    def __init__(
        self,
        folder: JobFolder,
        sources: Sequence[Dataset],
        *,
        seed: int,
        samples_per_shard: int,
        treatment: Treatment,
    ) -> None:
        self._folder, self._sources, self._treatment = folder, sources, treatment
        self._firsts = np.cumsum([0, *map(len, sources)])
        splits = np.zeros(self._firsts[-1], np.uint8)
        self._plan = PackingPlan(splits, 1, seed, samples_per_shard)
        names = [source.manifest.member_names for source in sources]
        self._caption_lines = any(n.caption_lines or n.caption_key is not None for n in names)

    def pack(self, workers: int) -> None:
        """Pack the shards that are not there yet. Raises Stopped after a SIGTERM."""
        finished = self._folder.finished(0)
        missing = [shard for shard in self._plan.shards if self._name(shard) not in finished]
        self._folder.delete_leftovers(0, [self._name(shard) for shard in missing], alone=True)
        total = int(self._firsts[-1])
        done = total - sum(len(shard.slots) for shard in missing)
        work = partial(rewrite_shard, treatment=self._treatment, caption_lines=self._caption_lines)
        with JobProgress(total, done, Unit("samples")) as progress, sigterm_waits() as stopping:
            for samples in run_in_processes(work, map(self._task, missing), workers, stopping):
                progress.advance(samples)
            if stopping():
                raise Stopped

    def finish(self, made_by: dict[str, Any]) -> FinishedDataSet:
        """Write rejected.csv and the manifest; DataError where every sample was rejected."""
        out = self._folder.root
        with RejectedRows() as rows:
            account = gather(self._folder.parts(0, map(self._name, self._plan.shards)), rows)
            rows.write(out, REJECTED)
        if not account.samples:
            reason, count = account.rejected.most_common(1)[0]
            raise DataError(
                f"all {account.rejected.total():,} samples were rejected, {count:,} of them because: "
                f"{reason}; every sample and its reason is in {out.locate(REJECTED)}"
            )
        names = replace(_NEW_NAMES, caption_lines=self._caption_lines)
        manifest = write_manifest(out, account.shards, made_by, member_names=names)
        self._folder.clean_up()
        return FinishedDataSet(manifest, account.statistics, account.rejected)

    def _name(self, shard: PlannedShard) -> str:
        return self._folder.shard_name(0, shard.number)

    def _task(self, shard: PlannedShard) -> RewritingTask:
        numbers = self._plan.rows(shard)
        source = np.searchsorted(self._firsts, numbers, side="right") - 1
        own_numbers = (numbers - self._firsts[source]).tolist()
        places = [self._sources[s].place(n) for s, n in zip(source.tolist(), own_numbers, strict=True)]
        return RewritingTask(
            self._folder.root, self._name(shard), shard.slots.start, numbers.tolist(), places
        )


def rewrite_shard(task: RewritingTask, treatment: Treatment, caption_lines: bool) -> int:
    """Write a new shard (none where every sample is rejected), then its description; how many samples it was
    made from. caption_lines: samples may have several captions, which become the lines of one.
    """
    rejected: list[RejectedRow] = []
    taken: list[Taken] = []
    samples = _new_samples(task, treatment, caption_lines, rejected, taken)
    write_described(task.folder, task.name, samples, rejected, taken)
    return len(task.places)


def _new_samples(
    task: RewritingTask,
    treatment: Treatment,
    caption_lines: bool,
    rejected: list[RejectedRow],
    taken: list[Taken],
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of every sample that can be taken, counted in `taken`; the others go to `rejected`."""
    samples = read_ahead(_read, task.places)
    for slot, (number, place, sample) in enumerate(
        zip(task.numbers, task.places, samples, strict=True), task.first_slot
    ):
        try:
            if sample is None:
                raise Rejected(DAMAGED)
            members = _new_members(sample, place.names, treatment, caption_lines, taken)
        except Rejected as reason:
            name = sample.key if sample else f"{place.shard} at byte {place.offset}"
            rejected.append(RejectedRow(number, name, str(reason)))
        else:
            yield f"{slot:09d}", members


def _read(place: SamplePlace) -> Sample | None:
    """The sample at a place; None for a damaged one."""
    try:
        return place.read()
    except DamagedSample:
        return None


def _new_members(
    sample: Sample,
    names: MemberNames,
    treatment: Treatment,
    caption_lines: bool,
    taken: list[Taken],
) -> dict[str, bytes]:
    """The members of a new sample by extension; Rejected where it cannot be one."""
    if not sample.caption.strip():
        raise Rejected("empty caption")
    try:
        caption = (_as_lines(sample.captions) if caption_lines else sample.caption).encode()
    except UnicodeEncodeError:
        raise Rejected("caption is not Unicode") from None
    data, image = process_image(bytes(sample.image), treatment.rules, treatment.transcoding)
    members = {image.extension: data, _NEW_NAMES.caption_extension: caption, "json": _described(sample)}
    for extension, content in sample.members.items():
        is_caption = extension == names.caption_extension and names.caption_key is None
        if content is sample.image or is_caption or extension == "json":
            continue
        kept = f"other.{extension}" if extension in _TAKEN_EXTENSIONS else extension
        if len(kept.encode("utf-8", "surrogateescape")) > _LONGEST_EXTENSION:
            raise Rejected("member with too long a name")
        members[kept] = bytes(content)
    taken.append(Taken(image, len(data), sample.caption))
    return members


def _as_lines(captions: Sequence[str]) -> str:
    return "\n".join(" ".join(caption.splitlines()) for caption in captions)


def _described(sample: Sample) -> bytes:
    """The JSON of a new sample: the old one's, every byte of it, with the old key put in at its end."""
    old = bytes(sample.members.get("json", b"{}"))
    columns = parse_columns(old)
    if columns is None or "key" in columns:
        return old
    comma = b", " if columns else b""
    return old.rstrip()[:-1] + comma + b'"key": ' + json.dumps(sample.key).encode() + b"}"
