"""Choose samples of existing shards, as a view on them that copies nothing, or packed anew.

    python -m pipeline.select --data shards/train --where "licence == 'CC BY'" --out shards/free
    python -m pipeline.select --data shards/train --exclude withdrawn.txt --out shards/train-2
    python -m pipeline.select --data shards/2023 --merge shards/2024 --out shards/all
    python -m pipeline.select --data foreign/ --rewrite --resize 512 --out shards/foreign

A view is a manifest that names the shards where they lie; it must be able to reach them. --where knows the
columns of each sample's .json (by name, or column("name with spaces")), and key and caption; ==, !=, <, <=,
>, >=, in, not in, is None, and, or, not, + - * /, lower() and len(). A column that is compared with a number
is read as one; a value that is missing or no number makes a comparison unknown, as in SQL, and only samples
of which the whole expression is true are taken. Ids for --exclude stand one a line: keys, names of images,
with or without folder and extension, PMC ids in them, or values of the column --group-key.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal

import tyro

from pipeline.checks import check_at_least, flag_name, local_path, output_folder
from pipeline.cli import main
from pipeline.selection.exclusion import Exclusion, read_exclusion
from pipeline.selection.filtering import Criteria, Findings, find_kept
from pipeline.selection.rewriting import DAMAGED, Rewriting
from pipeline.selection.sources import common_names, open_sources
from pipeline.selection.view import unused_share, write_view
from pipeline.selection.where import Where
from pipeline.sharding.endings import print_summary, resumable
from pipeline.sharding.folder_lock import locked
from pipeline.sharding.job import FinishedDataSet
from pipeline.sharding.job_folder import REJECTED, JobFolder
from pipeline.sharding.packing import Treatment
from pipeline.sharding.transcode import Transcoding
from pipeline.sharding.worker_pool import sigterm_interrupts
from pipeline.wording import counted, next_step
from shards import DataError, Dataset, Folder, UsageError, open_dataset
from shards.references import make_reference

UNUSED_SHARE_TO_REWRITE = 0.3
_ONLY_WITH_REWRITE = ("samples_per_shard", "seed", "resize", "format", "quality")


@dataclass(frozen=True)
class SelectConfig:
    """Flags of `pipeline.select`."""

    data: Annotated[
        tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(aliases=["--merge"])
    ]
    """Folders of shards to choose from, one after the other: paths or addresses; may be given repeatedly."""
    out: str
    """Folder for the new data set: a path or an address such as s3://bucket/prefix."""
    where: str | None = None
    """Expression that a sample's columns must meet: "licence == 'CC BY' and alignment_score > 0.3"."""
    exclude: str | None = None
    """File of ids whose samples are left out, one a line."""
    group_key: str | None = None
    """Column whose value an id of --exclude may be, too; without it, pmcid."""
    rewrite: bool = False
    """Pack the samples into new shards, shuffled, in place of a view."""
    samples_per_shard: int = 1000
    """Samples in a shard, with --rewrite."""
    seed: int = 0
    """Seed of the order in which samples are packed, with --rewrite."""
    resize: int | None = None
    """Make images smaller: pixels of the shorter side; never enlarges; with --rewrite."""
    format: Literal["jpeg", "webp"] | None = None
    """Store all images in this format, with --rewrite; without it, as they come."""
    quality: int = Transcoding.quality
    """Quality of images that --resize or --format encode again, 1 to 100."""
    workers: int | None = None
    """Processes that read, check and pack; without it, one for each core."""
    overwrite: bool = False
    """Replace the data set that the output folder holds."""

    def check(self) -> None:
        """Raise UsageError where values are out of range or contradict one another."""
        check_at_least(self, samples_per_shard=1, workers=1)
        if not self.addresses:
            raise UsageError("--data: give at least one folder of shards")
        if self.group_key is not None and self.exclude is None:
            raise UsageError("--group-key says what the ids of --exclude may be: give that too")
        defaults = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        for name in _ONLY_WITH_REWRITE:
            if not self.rewrite and getattr(self, name) != defaults[name]:
                raise UsageError(
                    f"{flag_name(name)} is about packing, and a view packs nothing: add --rewrite"
                )
        self.transcoding.check()

    @property
    def addresses(self) -> list[str]:
        """All data sets to choose from, in the order given."""
        return [address for group in self.data for address in group]

    @property
    def transcoding(self) -> Transcoding:
        """What is done with the images' bytes."""
        return Transcoding(self.resize, self.format, self.quality)


def select(config: SelectConfig) -> None:
    """Choose samples, and write the view or the new shards."""
    config.check()
    begin = time.perf_counter()
    criteria = Criteria(
        Where(config.where) if config.where is not None else None,
        read_exclusion(local_path("--exclude", config.exclude), config.group_key) if config.exclude else None,
    )
    out = output_folder("--out", config.out)
    sources = open_sources(config.addresses, out)
    if not config.rewrite:
        common_names(sources)
    made_by = _identity(config, out, sources, criteria)
    folder = JobFolder(out)
    if not config.overwrite:
        folder.check_free(made_by)
        if folder.manifests() is not None:
            print(f"{out.address}: this data set is complete; nothing to do")
            return
    workers = config.workers or len(os.sched_getaffinity(0))
    with sigterm_interrupts(), ExitStack() as held:
        chosen = _choose(sources, criteria, workers)
        held.enter_context(locked(out, alone=True))
        folder.claim(made_by, overwrite=config.overwrite)
        if config.rewrite:
            finished = _rewrite(config, folder, chosen, made_by, workers)
            _summarise_rewriting(out, finished, config.addresses)
        else:
            write_view(out, chosen, made_by)
            folder.delete_leftovers(0, [], alone=True)
            _summarise_view(out)
    print(f"{time.perf_counter() - begin:.1f} s")
    print(next_step(out.address, len(open_dataset(out.address))))


def _identity(
    config: SelectConfig, out: Folder, sources: Sequence[Dataset], criteria: Criteria
) -> dict[str, Any]:
    """What the output follows from, so that a rerun can tell whether it is the same request."""
    identity: dict[str, Any] = {
        "tool": "pipeline.select",
        "data": [make_reference(out, source.folder) for source in sources],
        "fingerprints": [source.manifest.fingerprint for source in sources],
    }
    if criteria.where:
        identity["where"] = criteria.where.text
    if criteria.exclusion:
        identity |= {
            "excluded_ids": len(criteria.exclusion.ids),
            "exclude_sha256": criteria.exclusion.file_sha256,
            "group_key": criteria.exclusion.column,
        }
    if config.rewrite:
        identity |= {"rewrite": True, "samples_per_shard": config.samples_per_shard, "seed": config.seed}
    return identity | config.transcoding.identity


def _choose(sources: Sequence[Dataset], criteria: Criteria, workers: int) -> list[Dataset]:
    """The chosen samples of each source; DataError where there are none."""
    if not criteria.where and not criteria.exclusion:
        return list(sources)
    kept, findings = find_kept(sources, criteria, workers)
    lines = _describe_findings(criteria, findings, sum(map(len, sources)), sum(int(k.sum()) for k in kept))
    print("\n".join(lines), flush=True)
    if not any(mask.any() for mask in kept):
        raise DataError("no sample is left: nothing was written")
    return [source.keeping(mask) for source, mask in zip(sources, kept, strict=True)]


def _describe_findings(criteria: Criteria, findings: Findings, samples: int, kept: int) -> list[str]:
    lines = [f"kept: {kept:,} of {counted(samples, 'sample')}; left out:"]
    if criteria.exclusion:
        lines.append(f"  {findings.excluded:>10,} excluded by id")
    if criteria.where:
        lines.append(f"  {findings.unmet:>10,} that do not meet --where")
        lines.append(
            f"  {findings.unknown:>10,} with a value for --where that is missing or cannot be compared"
        )
    if findings.without_json:
        lines.append(f"{counted(findings.without_json, 'sample')} without JSON, and so without columns")
    return lines + (_describe_ids(criteria.exclusion, findings.matched_ids) if criteria.exclusion else [])


def _describe_ids(exclusion: Exclusion, matched: set[str]) -> list[str]:
    missed = sorted(exclusion.ids - matched)
    lines = [f"ids in --exclude: {len(exclusion.ids):,}, of which {len(matched):,} matched"]
    if missed:
        shown = ", ".join(missed[:10]) + (", …" if len(missed) > 10 else "")
        lines.append(f"WARNING: {counted(len(missed), 'id')} matched no sample: {shown}")
    return lines


def _rewrite(
    config: SelectConfig, folder: JobFolder, chosen: Sequence[Dataset], made_by: dict[str, Any], workers: int
) -> FinishedDataSet:
    job = Rewriting(
        folder,
        chosen,
        seed=config.seed,
        samples_per_shard=config.samples_per_shard,
        treatment=Treatment(transcoding=config.transcoding),
    )
    with resumable():
        job.pack(workers)
    return job.finish(made_by)


def _summarise_view(out: Folder) -> None:
    view = open_dataset(out.address)
    shards = counted(len(view.manifest.shards), "shard")
    print(f"{out.address}: a view of {counted(len(view), 'sample')} in {shards}; nothing was copied")
    unused = unused_share(view)
    if view.selected is not None:
        print(f"  {unused:.0%} of the bytes that reading it fetches belong to samples left out")
    if unused > UNUSED_SHARE_TO_REWRITE:
        print(
            f"  to read only what is used: python -m pipeline.select --data {out.address} --rewrite --out "
            f"{out.address}-packed"
        )


def _summarise_rewriting(out: Folder, finished: FinishedDataSet, addresses: Sequence[str]) -> None:
    print_summary(out.address, finished, out.locate(REJECTED), "sample")
    if finished.rejected[DAMAGED]:
        print(f"  to see what is damaged: python -m pipeline.inspect --data {addresses[0]} --verify")


if __name__ == "__main__":
    main(select, SelectConfig, "select", __doc__ or "")
