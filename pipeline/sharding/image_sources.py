"""Where images come from: found by name in the process that plans, read in the processes that pack.

A source is a local folder, a `.zip` or `.tar` (local or at an address), or an address such as s3://bucket/images.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from pipeline.sharding.address_source import AddressImages, hosts
from pipeline.sharding.archive_file import ArchiveFile, plain_address
from pipeline.sharding.folder_source import FolderImages, open_folder
from pipeline.sharding.image_names import NameRule, NotHere, decide_rule, missing
from pipeline.sharding.rows import Rejected
from pipeline.sharding.tar_directory import compressed_tar
from pipeline.sharding.tar_source import TarImages
from pipeline.sharding.zip_source import ZipImages
from shards import UsageError
from shards.storage import is_remote

_COMPRESSED_TARS = (".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Location(Protocol):
    """Where one image lies; small, and may be sent to another process."""

    def read(self) -> bytes:
        """The image's bytes; Rejected where it cannot be had."""


class Store(Protocol):
    """One folder, archive or address, which knows images by their paths in it."""

    certain: bool  # whether what it locates is there
    address: str
    identity: str

    @property
    def examples(self) -> Sequence[str]:
        """Some of the paths in it, for messages."""

    def locate(self, path: str) -> Location:
        """Where the image with this path lies; NotHere where it is known not to be there."""

    def holds(self, paths: Sequence[str]) -> int:
        """How many of these images are there."""

    def sizes(self, paths: Sequence[str]) -> list[int]:
        """The bytes of each image; 0 for one that is not there."""

    def close(self) -> None:
        """Close its files."""


@dataclass(frozen=True)
class FirstThatHas:
    """An image that may be in several places, of which the first that has it counts."""

    locations: tuple[Location, ...]

    def read(self) -> bytes:
        """The image's bytes; Rejected where it cannot be had."""
        for location in self.locations[:-1]:
            try:
                return location.read()
            except NotHere:
                pass
        return self.locations[-1].read()


@dataclass(frozen=True)
class Refused:
    """An image that a source has but cannot give."""

    reason: str

    def read(self) -> bytes:
        """Always Rejected."""
        raise Rejected(self.reason)


class ImageSource:
    """Images by the names that a table gives them, from one or several stores tried in order.

    To be closed: `with open_image_source(…) as images`.
    """

    def __init__(self, stores: Sequence[tuple[Store, NameRule]]) -> None:
        self._stores = list(stores)

    def __enter__(self) -> "ImageSource":
        return self

    def __exit__(self, *exception: object) -> None:
        for store, _ in self._stores:
            store.close()

    @property
    def identity(self) -> str:
        """What tells this source from others in a rerun of the job."""
        return ", then ".join(store.identity for store, _ in self._stores)

    @property
    def addresses(self) -> list[str]:
        """What `--images` would have to name to have this source."""
        return [store.address for store, _ in self._stores]

    def locate(self, name: str) -> Location:
        """Where the image of this name lies; Rejected where it is known not to be had."""
        locations: list[Location] = []
        refusals: list[NotHere] = []
        for store, rule in self._stores:
            try:
                locations.append(store.locate(rule.path(name)))
            except NotHere as refusal:
                refusals.append(refusal)
                continue
            except Rejected as reason:
                locations.append(Refused(str(reason)))
                break
            if store.certain:
                break
        if not locations:
            raise next((refusal for refusal in refusals if str(refusal) == str(missing())), refusals[0])
        return locations[0] if len(locations) == 1 else FirstThatHas(tuple(locations))

    def sizes(self, names: Sequence[str]) -> list[int]:
        """The bytes that each image has in the source; 0 for one that is not there."""
        sizes = [0] * len(names)
        wanted = list(range(len(names)))
        for store, rule in self._stores:
            found = store.sizes([rule.path(names[number]) for number in wanted])
            for number, size in zip(wanted, found, strict=True):
                sizes[number] = size
            wanted = [number for number in wanted if not sizes[number]]
        return sizes


def open_image_source(images: Sequence[str], tables: Sequence[str], some_names: Sequence[str]) -> ImageSource:
    """The sources that `--images` names. Without it: addresses in the table itself; or the first table's own
    folder or its `images/`, whichever holds more of the images of the first rows; or the `images.zip` or
    `images.tar` beside the table.

    Raises UsageError where a source cannot be opened or none of the first images is in any.
    """
    names = [name for name in some_names if name.strip()]
    with ExitStack() as opened:
        if images:
            candidates = [opened.enter_context(_open(address, tables[0], names)) for address in images]
            if names and not any(candidate.found for candidate in candidates):
                raise UsageError(
                    _nothing_found(names, tables[0], candidates) + "; correct --images or the table"
                )
        elif (addresses := hosts(names)) and 2 * sum(map(is_remote, names)) > len(names):
            stores = [AddressImages(address) for address in addresses]
            candidates = [_Candidate(store, NameRule(), store.holds(names)) for store in stores]
            if not any(candidate.found for candidate in candidates):
                raise UsageError(_nothing_found(names, tables[0], candidates))
        else:
            candidates = [_beside(tables[0], names)]
        opened.pop_all()
    usual = next((candidate.rule for candidate in candidates if candidate.found), NameRule())
    return ImageSource([(c.store, c.rule if c.found else usual) for c in candidates])


@dataclass(frozen=True)
class _Candidate:
    """A store, the rule for the table's names in it, and how many of the first names it holds."""

    store: Store
    rule: NameRule
    found: int

    def __enter__(self) -> "_Candidate":
        return self

    def __exit__(self, *exception: object) -> None:
        self.store.close()


def _open(address: str, table: str, names: Sequence[str]) -> _Candidate:
    """The store at an address; UsageError where there is none."""
    remote, address = is_remote(address), plain_address(address)
    file_name = address.partition("?")[0].rstrip("/").lower()
    if not remote and os.path.isdir(address):
        return _Candidate(*open_folder(address, table, names))
    if file_name.endswith(_COMPRESSED_TARS):
        raise compressed_tar(address)
    if file_name.endswith((".zip", ".tar")):
        return _judged((ZipImages if file_name.endswith(".zip") else TarImages)(address, table), names)
    if remote:
        return _judged(AddressImages(address), names)
    raise UsageError(
        f"{address}: no such folder of images" + (", nor a .zip or .tar" if os.path.exists(address) else "")
    )


def _judged(store: Store, names: Sequence[str]) -> _Candidate:
    return _Candidate(store, *decide_rule(names, store.holds))


def _beside(table: str, names: Sequence[str]) -> _Candidate:
    """The store beside a table that holds the first images; UsageError where there is none."""
    beside = os.path.dirname(plain_address(table))
    addresses = [beside, os.path.join(beside, "images")]
    stores = [AddressImages(a) if is_remote(a) else FolderImages(a, table) for a in addresses]
    candidates = [_judged(store, names) for store in stores]
    best = max(candidates, key=lambda candidate: candidate.found)
    if best.found or not names:
        return best
    with ExitStack() as unused:
        for address in (os.path.join(beside, name) for name in ("images.zip", "images.tar")):
            if _is_file(address):
                archive = _open(address, table, names)
                if archive.found:
                    return archive
                candidates.append(unused.enter_context(archive))
        raise UsageError(
            _nothing_found(names, table, candidates) + ": say where they are with --images FOLDER"
        )


def _is_file(address: str) -> bool:
    try:
        ArchiveFile(address).size()
    except UsageError:
        return False
    return True


def _nothing_found(names: Sequence[str], table: str, candidates: Sequence[_Candidate]) -> str:
    places = []
    for store in (candidate.store for candidate in candidates):
        examples = ", ".join(map(repr, store.examples))
        places.append(store.address + (f" (which holds {examples})" if examples else ""))
    count = f"the first {len(names)} images" if len(names) > 1 else "the images"
    return f"none of {count} of {table} (such as {names[0]!r}) is in {' or '.join(places)}"
