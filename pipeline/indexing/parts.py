"""What an unfinished job keeps: one file for each shard that it has described, trusted only as long as the
shard and the question are the same.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.indexing.describe_shard import DescribedShard
from pipeline.indexing.shard_files import ShardFile
from shards import Folder, MemberNames

_PART = re.compile(r"\.?index-[0-9a-f]{24}\.part\.json(\.[0-9a-f]+\.tmp)?")


def write_part(out: Folder, file: ShardFile, names: MemberNames, described: DescribedShard) -> None:
    """Keep what was found in a shard."""
    content = {"of": _identity(file, names), "described": described.to_json()}
    out.write(_part_name(file), json.dumps(content).encode())


def read_parts(
    out: Folder, files: Sequence[ShardFile], names: MemberNames
) -> dict[ShardFile, DescribedShard]:
    """The shards among these that an earlier run described and that are still as they were."""
    there = set(out.names())
    candidates = [file for file in files if _part_name(file) in there]
    with ThreadPoolExecutor(16) as threads:
        contents = [json.loads(text) for text in threads.map(out.read, map(_part_name, candidates))]
    return {
        file: DescribedShard.from_json(content["described"])
        for file, content in zip(candidates, contents, strict=True)
        if content["of"] == _identity(file, names)
    }


def delete_parts(out: Folder) -> None:
    """Remove what only an unfinished job needs."""
    parts = [name for name in out.names() if _PART.fullmatch(name)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(out.delete, parts))


def _part_name(file: ShardFile) -> str:
    return f"index-{hashlib.sha256(file.address.encode()).hexdigest()[:24]}.part.json"


def _identity(file: ShardFile, names: MemberNames) -> dict[str, object]:
    return {"shard": file.address, "bytes": file.size, "version": file.version, "members": names.to_dict()}
