"""Images that are files below a remote address such as s3://bucket/images."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.sharding.archive_file import folder_at
from pipeline.sharding.image_names import LARGEST_IMAGE, missing, relative_path
from pipeline.sharding.rows import Rejected
from shards.storage import is_remote

_REQUESTS = 32  # at a time, for sizes
_LONGEST_NAME = 1024  # bytes; what S3 allows


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An image that is a file at an address."""

    folder: str
    name: str

    def read(self) -> bytes:
        """The file's bytes; Rejected where there is none. DataError where the storage cannot be reached or
        refuses: a fault of the network must not pass for one of the row.
        """
        try:
            data = bytes(folder_at(self.folder).read_range(self.name, 0, LARGEST_IMAGE + 1))
        except FileNotFoundError:
            raise missing() from None
        if len(data) > LARGEST_IMAGE:
            raise Rejected("too large")
        return data

    def size(self) -> int:
        """The file's bytes; 0 where it cannot be read."""
        try:
            size = folder_at(self.folder).size(self.name)
        except FileNotFoundError:
            return 0
        return size if size <= LARGEST_IMAGE else 0


class AddressImages:
    """Images below an address such as s3://bucket/images."""

    certain = False  # whether a file is there shows when it is read
    examples: Sequence[str] = ()  # listing a bucket may take minutes

    def __init__(self, address: str) -> None:
        self.address = self.identity = address.rstrip("/")
        folder_at(self.address)  # UsageError where this kind of address is not available

    def close(self) -> None:
        """Nothing is kept open."""

    def locate(self, path: str) -> RemoteFile:
        """Where the image with this path, or address below this one, would lie; Rejected where it cannot."""
        path = path.removeprefix(self.address + "/")
        return RemoteFile(self.address, _checked(relative_path(path)))

    def holds(self, paths: Sequence[str]) -> int:
        """How many of these images are there."""
        return sum(size > 0 for size in self.sizes(paths))

    def sizes(self, paths: Sequence[str]) -> list[int]:
        """The bytes of each image; 0 for one that is not there."""
        with ThreadPoolExecutor(_REQUESTS) as pool:
            return list(pool.map(self._size, paths))

    def _size(self, path: str) -> int:
        try:
            return self.locate(path).size()
        except Rejected:
            return 0


def hosts(names: Sequence[str]) -> list[str]:
    """The buckets (s3://bucket) or servers (https://server) of those names that are addresses."""
    addresses = [name.split("/", 3) for name in names if is_remote(name)]
    return sorted({"/".join(address[:3]) for address in addresses if len(address) == 4})


def _checked(path: str) -> str:
    """A path that a storage can be asked for.

    Rejected for one that it would refuse, since that would look like a failure of the storage.
    """
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        encoded = b""
    if not encoded or len(encoded) > _LONGEST_NAME or any(byte < 32 or byte == 127 for byte in encoded):
        raise Rejected("unreadable (a name that no storage takes)")
    return path
