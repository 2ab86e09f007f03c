"""Opening data by its address: a folder with a manifest, tars that nobody has described yet, or a table that
nobody has packed.

    open_data("shards/train", topology)
    open_data("s3://bucket/pmc/{000..163}.tar", topology)
    open_data("train.csv", topology)                    # see `pipeline.packed_table`

Tars without a manifest are described once, as `pipeline.index` does it by default, and what was found is kept
in the user's cache, not beside the tars, since those may lie where nobody can write:

    ~/.cache/pmc-clip-stream/indexes/000-163.tar-6f0c…/   manifest and index of these tars, as they are now
    ~/.cache/pmc-clip-stream/indexes/shards/              what was found in each tar, for other sets with it

The name of the first ends with a hash of the tars' addresses, sizes and ETags or times. So a tar that changed
makes another name, and is read again, alone; nothing here is ever out of date, and all may be deleted.
"""

import hashlib
import json
import os
import posixpath
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.indexing.job import IndexedShards, NothingUsable, describe_shards, differing_shards
from pipeline.indexing.member_flags import member_names
from pipeline.indexing.report import describe_oddities
from pipeline.indexing.shard_files import ShardFile, find_shards, names_shards
from pipeline.packed_table import names_table, pack_table
from pipeline.table_flags import TableFlags
from pipeline.topology import Topology
from pipeline.user_cache import cache_folder, cached_name, make_folders, one_at_a_time
from pipeline.wording import counted
from shards import DataError, Dataset, Folder, Manifest, MemberNames, UsageError, open_dataset
from shards.manifest import MANIFEST
from shards.storage import is_remote

# More would wait for the disk or the network, and each is a process with this one's memory.
_MOST_WORKERS = 16


def open_data(address: str, topology: Topology, tables: TableFlags | None = None) -> Dataset:
    """Open the data set at an address: the folder of one; tars, named by a single address, by braces or
    wildcards, or by several of these joined by `::`; or a table of images and captions.

    tables: how a table is read and where its images are.
    Tars are described first, unless the manifest in their folder lists exactly them, or they were before; a
    table is packed first, unless it was before. Of several processes one does it, and the others wait.
    Raises UsageError where there is nothing of the kind, DataError where a tar is damaged or none of the
    samples can be used.
    """
    if names_table(address):
        return pack_table(address, tables or TableFlags(), topology)
    if address.startswith("pipe:"):
        raise UsageError(
            f"{address}: a pipe gives bytes only from the first on, and samples are read from anywhere: give "
            "the address that the pipe reads, such as 's3://bucket/{000..163}.tar'"
        )
    patterns = [_absolute(pattern) for pattern in re.split(r"(?<=\.tar)::", address)]
    if not any(map(names_shards, patterns)):
        return open_dataset(address)
    files = find_shards(patterns)
    if _listed_beside(files):
        return open_dataset(files[0].folder.address)
    names = member_names()
    kept = cache_folder("indexes")
    folder = kept / _index_name(files, names)
    if not (folder / MANIFEST).exists():
        shared_parts = kept / "shards"
        make_folders("the index of these shards", folder, shared_parts)
        waiting = f"{address}: another process is describing these shards; waiting for it"
        with one_at_a_time(folder, waiting, quiet=topology.local_rank > 0):
            if not (folder / MANIFEST).exists():
                _describe(address, files, folder, shared_parts, names)
    return open_dataset(str(folder))


def _absolute(pattern: str) -> str:
    """A pattern that means the same from any working folder."""
    return pattern if is_remote(pattern) else os.path.join(os.getcwd(), pattern.removeprefix("file://"))


def _listed_beside(files: Sequence[ShardFile]) -> bool:
    """Whether the shards lie in one folder with a manifest that lists exactly them."""
    folder = files[0].folder
    if {file.folder.address for file in files} != {folder.address}:
        return False
    try:
        manifest = Manifest.from_json(folder.read(MANIFEST), folder.locate(MANIFEST))
    except (FileNotFoundError, DataError):  # a public bucket may forbid to ask for what is not there
        return False
    return not any(differing_shards(folder, manifest, files))


def _index_name(files: Sequence[ShardFile], names: MemberNames) -> str:
    """The name of the folder that describes exactly these tars, as they are now."""
    identity = [names.to_dict(), [(file.address, file.size, file.version) for file in files]]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    ends = dict.fromkeys(posixpath.splitext(file.name)[0] for file in (files[0], files[-1]))
    return cached_name(f"{files[0].folder.name}-{'-'.join(ends)}", digest)


def _describe(
    address: str, files: Sequence[ShardFile], folder: Path, shared_parts: Path, names: MemberNames
) -> None:
    """Describe tars as a data set in a folder of the cache, and say so."""
    megabytes = sum(file.size for file in files) / 1e6
    _say(
        f"{address}: no manifest; {counted(len(files), 'shard')} ({megabytes:,.1f} MB): reading all of it "
        f"once, for an index that is kept in {folder}"
    )
    try:
        done = describe_shards(
            files,
            Folder(folder),
            names,
            # As an address: the cache may be seen under another path elsewhere
            refer=lambda shard_folder: shard_folder.address,
            workers=min(_MOST_WORKERS, len(os.sched_getaffinity(0))),
            shared_parts=Folder(shared_parts),
        )
    except NothingUsable as error:
        raise DataError(
            f"{address}: {error}; these are flags of pipeline.index: run 'python -m pipeline.index --shards "
            f"{address.replace('::', ' ')} --out FOLDER' with what fits, and give FOLDER as the data"
        ) from error
    except KeyboardInterrupt:
        _say("described shards are kept; the same command goes on with the others")
        raise
    _summarise(done, names)


def _summarise(done: IndexedShards, names: MemberNames) -> None:
    _say(f"described {counted(done.manifest.samples, 'sample')}")
    if done.manifest.selection:
        for line in describe_oddities(done.described, names):
            _say(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
