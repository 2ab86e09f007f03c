"""Finding the members of an archive, or the files of a folder's tree, by name: 16 bytes of memory for each.

The names themselves stay where they are (in the archive's directory, say) and are looked at only to confirm
a find.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from xxhash import xxh3_64_intdigest

from pipeline.sharding.image_names import missing
from pipeline.sharding.rows import Rejected

# A key holds a hash of the base name, one of its folder's name, and one of the whole path, in this order. So
# in one sorted array the members of one path are adjacent, and those of equal last two parts, or base names.
_OF_PATH = (1 << 20) - 1
_OF_FOLDER = (1 << 40) - 1 - _OF_PATH
_OF_BASE = (1 << 64) - 1 - _OF_FOLDER - _OF_PATH
_EXAMPLES = 3


class MemberIndex:
    """The places of members by their paths (bytes, UTF-8, `/` between folders).

    members: path and place of each, places ascending. path_at: the path of the member at a place.
    """

    def __init__(self, members: Iterable[tuple[bytes, int]], path_at: Callable[[int], bytes]) -> None:
        self._path_at = path_at
        self._above: bytes | None = None  # the leading folders that all members share
        keys, places = array("Q"), array("Q")
        for path, place in members:
            keys.append(_key(path))
            places.append(place)
            if self._above is None or not path.startswith(self._above):
                self._above = _shared_folders(self._above, path)
        self.examples = [path_at(place).decode("utf-8", "replace") for place in places[:_EXAMPLES]]
        order = np.argsort(np.frombuffer(keys, np.uint64), kind="stable")
        self._keys = np.frombuffer(keys, np.uint64)[order]
        del keys
        self._places = np.frombuffer(places, np.uint64)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, name: str) -> int:
        """The place of the member with this path, with or without the leading folders that all members share,
        or else of the only one whose path ends with `/` and the name.

        Of members with one path the last counts, as it does for unzip and tar. NotHere where there is none,
        Rejected where there are several.
        """
        path = name.encode("utf-8", "surrogatepass")
        above = self._above or b""
        whole = path if path.startswith(above) else above + path
        key = _key(whole)
        found = [place for place in self._between(key, key) if self._path_at(place) == whole]
        return found[-1] if found else self._find_deeper(path)

    def _find_deeper(self, path: bytes) -> int:
        rest = _OF_PATH if b"/" in path else _OF_PATH | _OF_FOLDER
        key = _key(path)
        found: dict[bytes, int] = {}
        for place in self._between(key & ~rest, key | rest):
            candidate = self._path_at(place)
            if candidate.endswith(b"/" + path):
                found[candidate] = place
                if len(found) > 1:
                    raise Rejected("ambiguous name")
        if not found:
            raise missing()
        return found.popitem()[1]

    def _between(self, first: int, last: int) -> Iterator[int]:
        """The places of members whose keys lie from `first` to `last`."""
        # np.uint64, since for a Python integer numpy would convert the whole array
        start = int(self._keys.searchsorted(np.uint64(first)))
        while start < len(self._keys) and self._keys.item(start) <= last:
            yield self._places.item(start)
            start += 1


def _key(path: bytes) -> int:
    folders, _, base = path.rpartition(b"/")
    folder = folders.rpartition(b"/")[2]
    return (
        xxh3_64_intdigest(base) & _OF_BASE
        | xxh3_64_intdigest(folder) & _OF_FOLDER
        | xxh3_64_intdigest(path) & _OF_PATH
    )


def _shared_folders(above: bytes | None, path: bytes) -> bytes:
    """The leading folders of a path, a slash after each, that it shares with others that have `above`."""
    folders = path.split(b"/")[:-1]
    if above is not None:
        other = above.split(b"/")[:-1]
        same = [a == b for a, b in zip(folders, other, strict=False)]
        folders = folders[: (*same, False).index(False)]
    return b"".join(folder + b"/" for folder in folders)
