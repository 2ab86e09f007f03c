"""Lists of ids whose samples must go: articles withdrawn, requests for privacy."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards import UsageError
from shards.manifest import sha256

DEFAULT_COLUMN = "pmcid"
_PMC_ID = re.compile(r"PMC\d+")


@dataclass(frozen=True)
class Exclusion:
    """Ids, the column whose value an id may be, and the hash of the file they came from."""

    ids: frozenset[str]
    column: str
    file_sha256: str

    def matching(self, key: str, columns: dict[str, Any]) -> frozenset[str]:
        """The ids that take out a sample: those that equal its key, its image's name (also without folder or
        extension), the PMC id in that name, or the value of the column.
        """
        return self.ids.intersection(self._names(key, columns))

    def _names(self, key: str, columns: dict[str, Any]) -> Iterator[str]:
        own_key, image, group = (columns.get(name) for name in ("key", "image", self.column))
        for name in (key, own_key, image):
            if isinstance(name, str):
                file_name = name.rpartition("/")[2]
                stem = file_name.rpartition(".")[0] or file_name
                yield from (name, file_name, stem, name[: len(name) - len(file_name)] + stem)
                yield from _PMC_ID.findall(name)
        if isinstance(group, str | int):
            yield str(group)


def read_exclusion(path: Path, column: str | None) -> Exclusion:
    """The ids of a file, one a line; blank lines and those that begin with # do not count.

    Raises UsageError where there is no such file of text.
    """
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"--exclude {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"--exclude {path}: not a text in UTF-8, with an id a line") from None
    stripped = (line.strip() for line in lines)
    ids = frozenset(line for line in stripped if line and not line.startswith("#"))
    return Exclusion(ids, column or DEFAULT_COLUMN, sha256(content))
