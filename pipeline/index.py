"""Describe WebDataset tars that others made (img2dataset, BIOMEDICA, open_clip users'), so that they train.

    python -m pipeline.index --shards 'tars/{000..163}.tar'
    python -m pipeline.index --shards 's3://bucket/pmc/{000..163}.tar' --out index/pmc
    python -m pipeline.index --shards tars/ --image-ext jpg,jpeg.2 --caption-ext json --caption-key caption

The tars stay as they are. Beside them, or in OUT, appear manifest.json and the index, and rejected.csv with
the samples that cannot be used (no image, no caption, …) and are left out. Every tar is read once, from its
beginning to its end. Interrupted, the same command goes on with the tars that are missing.
"""

import sys
import time
from dataclasses import dataclass

from pipeline.checks import check_at_least
from pipeline.cli import main
from pipeline.indexing.job import REJECTED, IndexedShards, index_shards
from pipeline.indexing.member_flags import IMAGE_EXTENSIONS, member_names
from pipeline.indexing.report import describe_oddities
from pipeline.sharding.worker_pool import sigterm_interrupts
from pipeline.wording import counted, next_step
from shards import MemberNames


@dataclass(frozen=True)
class IndexConfig:
    """Flags of `pipeline.index`."""

    shards: tuple[str, ...]
    """Tars to describe: paths or addresses with braces such as 's3://bucket/{000..163}.tar', wildcards, or
    folders.
    """
    out: str | None = None
    """Folder for the manifest and the index; without it, the folder of the tars."""
    image_ext: str = IMAGE_EXTENSIONS
    """Extensions of images, separated by commas; the first that a sample has is its image."""
    caption_ext: str | None = None
    """Extension of captions; without it, txt, or json with --caption-key."""
    caption_key: str | None = None
    """Key of the caption, where captions lie in JSON members: a text, or a list of several captions."""
    caption_lines: bool = False
    """Each line of a caption is a caption of its own, several of one image (as are the texts of a list)."""
    workers: int | None = None
    """Processes that read tars; without it, one for each core."""
    overwrite: bool = False
    """Replace the manifest and the index that the output folder holds; tars are never touched."""


def index(config: IndexConfig) -> None:
    """Describe the tars that the flags name."""
    check_at_least(config, workers=1)
    names = member_names(config.image_ext, config.caption_ext, config.caption_key, config.caption_lines)
    begin = time.perf_counter()
    with sigterm_interrupts():
        try:
            done = index_shards(
                config.shards, config.out, names, workers=config.workers, overwrite=config.overwrite
            )
        except KeyboardInterrupt:
            print("described shards are kept; the same command goes on with the others", file=sys.stderr)
            raise
    if done is None:
        where = f" in {config.out}" if config.out else ""
        print(f"these shards are described already{where}, and none has changed its size; nothing to do")
    else:
        _summarise(done, names, time.perf_counter() - begin)


def _summarise(done: IndexedShards, names: MemberNames, seconds: float) -> None:
    manifest, out = done.manifest, done.out
    print(
        f"{out.address}: {counted(manifest.samples, 'sample')} in {counted(len(manifest.shards), 'shard')}, "
        f"{manifest.total_bytes / 1e6:,.1f} MB"
    )
    for line in describe_oddities(done.described, names):
        print(line)
    if manifest.selection:
        print(f"every sample that is left out, and why: {out.locate(REJECTED)}")
    print(f"{seconds:.1f} s, {manifest.total_bytes / 1e6 / seconds:,.0f} MB/s")
    print(next_step(out.address, manifest.samples))


if __name__ == "__main__":
    main(index, IndexConfig, "index", __doc__ or "")
