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
    if base.remote:
        scheme, separator, path = base.address.rpartition("://")
        return Folder(scheme + separator + posixpath.normpath(posixpath.join(path, reference)))
    # `..` leads up from where a folder really is, which is not where a symbolic link to it stands
    return Folder(os.path.realpath(os.path.join(_local_path(base), reference)))


def make_reference(base: Folder, target: Folder) -> str:
    """How a manifest in `base` names `target`: "" for itself, relative where both are local folders, so that
    they may be moved together, else the address or the absolute path.
    """
    if base.remote and target.remote:
        return "" if base.address == target.address else target.address
    if target.remote:
        return target.address
    path = os.path.realpath(_local_path(target))
    if base.remote:
        return path
    relative = os.path.relpath(path, os.path.realpath(_local_path(base)))
    return "" if relative == os.curdir else relative


def _local_path(folder: Folder) -> str:
    return folder.address.removeprefix("file://")
