"""How a manifest names the folder of a shard that does not lie beside it."""

import os
import posixpath

from shards.storage import Folder, is_remote


def resolve_reference(base: Folder, reference: str) -> Folder:
    """The folder that a manifest in `base` means: a path relative to it, an absolute path, or an address."""
    if not reference:
        return base
    if is_remote(reference) or os.path.isabs(reference):
        return Folder(reference)
    scheme, separator, path = base.address.rpartition("://")
    return Folder(scheme + separator + posixpath.normpath(posixpath.join(path, reference)))


def make_reference(base: Folder, target: Folder) -> str:
    """How a manifest in `base` names `target`: "" for itself, relative where both are local folders, so that
    they may be moved together, else the address.
    """
    if base.address == target.address:
        return ""
    if base.remote or target.remote:
        return target.address
    return os.path.relpath(target.address, base.address)
