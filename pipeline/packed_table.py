"""A table of images and captions in place of shards: packed on first use, as `pipeline.shard` does it.

    pack_table("train.csv", TableFlags(images=("figures.zip",)), topology)

The shards are kept in the user's cache, below a name that ends with a hash of the table's address, size and
time and of the flags; so a table that changed is packed again. Images that change under their names are not
noticed: the folder may be deleted at any time.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.indexing.shard_files import look_at
from pipeline.sharding.tables import TableFormat, file_name, table_kind, table_stem
from pipeline.table_flags import TableFlags
from pipeline.topology import Topology
from pipeline.user_cache import cache_folder, cached_name, make_folders, one_at_a_time
from shards import Dataset, UsageError, open_dataset
from shards.manifest import MANIFEST
from shards.storage import is_remote

_SOLE_TASK = "0/1"  # whatever SLURM says: every process of the job waits for the whole table


def names_table(address: str) -> bool:
    """Whether an address is that of a table, as its name says, and not of shards."""
    if file_name(address) == MANIFEST or (not is_remote(address) and os.path.isdir(address)):
        return False
    try:
        table_kind(address, TableFormat())
    except UsageError:
        return False
    return True


def check_tables(tables: TableFlags, addresses: Sequence[str]) -> None:
    """Raise UsageError where flags about tables are given and no address is one, or the separator is none."""
    tables.check_table()
    if tables.images and not any(map(names_table, addresses)):
        raise UsageError(
            f"--images says where a table's images are, and there is no table among {', '.join(addresses)}: "
            "leave the flag out"
        )


def pack_table(address: str, tables: TableFlags, topology: Topology) -> Dataset:
    """The data set of a table, packed first unless it was before; of several processes of a machine one does
    it, and the others wait.

    Raises UsageError where there is no such table or it cannot be read so, DataError where packing fails.
    """
    stem = table_stem(address) or "table"
    folder = cache_folder("tables") / cached_name(stem, _digest(address, tables))
    shards = folder / stem
    if not (shards / MANIFEST).exists():
        make_folders("the shards of this table", folder)
        waiting = f"{address}: another process is packing this table; waiting for it"
        with one_at_a_time(folder, waiting, quiet=topology.local_rank > 0):
            if not (shards / MANIFEST).exists():
                _pack(address, tables, shards)
    return open_dataset(str(shards))


def _digest(address: str, tables: TableFlags) -> str:
    """A hash of what the shards follow from: the table as it is now, and how it is read."""
    found = look_at(address)
    if found is None:
        raise UsageError(f"{address}: no such table")
    images = [image if is_remote(image) else os.path.abspath(image) for image in tables.images]
    place = address if is_remote(address) else os.path.abspath(address)
    identity = [place, found.size, found.version, _own_flags(tables) | {"images": images}]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _own_flags(tables: TableFlags) -> dict[str, Any]:
    """The flags of TableFlags alone: `tables` may be a whole command's."""
    return {field.name: getattr(tables, field.name) for field in fields(TableFlags)}


def _pack(address: str, tables: TableFlags, shards: Path) -> None:
    from pipeline.shard import ShardConfig, shard  # heavy, and most runs are given shards

    print(
        f"{address}: a table: packing it once into shards, which are kept in {shards}",
        file=sys.stderr,
        flush=True,
    )
    with redirect_stdout(sys.stderr):  # what a command prints there is its own result
        shard(ShardConfig(csv=(address,), out=str(shards), task=_SOLE_TASK, **_own_flags(tables)))
