"""Checkpoint files in repositories of the Hugging Face hub, kept in its own cache and checked once.

Sign-in, endpoint, cache and work without a network are huggingface_hub's, set by its variables (HF_TOKEN,
HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE).
"""

import errno
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pmc_clip.cache_folder import cache_folder
from pmc_clip.errors import ModelError

# What huggingface_hub and the libraries below it raise; the last is Xet's, for disk and network alike.
_TROUBLE = (HTTPError, OSError, ValueError, EntryNotFoundError, RuntimeError)
_DISK_REFUSES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class HubRepository:
    """The files of a repository at a revision (None: its main branch).

    Where the hub does not answer, or refuses, those of them that are in the cache.
    """

    def __init__(self, name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> None:
        self._name, self._kind, self._revision = name, kind, revision
        self._what = f"{'data set' if kind == 'dataset' else 'model'} {name}" + (
            f"@{revision}" if revision else ""
        )
        self._checksums: dict[str, str | None] = {}
        self._trouble: Exception | None = None
        try:
            info = HfApi().repo_info(
                name,
                repo_type=kind,
                revision=revision,
                files_metadata=True,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )
        except _TROUBLE as error:
            self._trouble = error
        else:
            self._checksums = {
                file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or []
            }

    def find(self, name: str) -> Path | None:
        """The file in the cache, downloaded if it is not there or was changed; None where there is none.

        ModelError where it cannot be brought, or has not the content that the hub's checksum says.
        """
        if self._trouble is None and name not in self._checksums:
            return None
        try:
            found = hf_hub_download(
                self._name,
                name,
                repo_type=self._kind,
                revision=self._revision,
                cache_dir=constants.HF_HUB_CACHE,
                local_files_only=self._trouble is not None,
            )
        except _TROUBLE as error:
            if self._trouble is not None:
                return None
            raise ModelError(f"{name} of {self._what}: {_reason(error)}") from error
        self._check(Path(found), name)
        return Path(found)

    def lacks(self, name: str) -> ModelError:
        """That there is no such file, or no way to it."""
        if self._trouble is not None:
            return ModelError(
                f"{self._what}: {_reason(self._trouble)} (the cache {constants.HF_HUB_CACHE} has no {name})"
            )
        there = ", ".join(self._checksums) or "no files"
        return ModelError(f"{self._what} at {constants.ENDPOINT}: has no {name}: it has {there}")

    def _check(self, path: Path, name: str) -> None:
        """Compare the content with the hub's sha256, once for each state of the file."""
        expected = self._checksums.get(name) or _linked_sha256(path)
        if expected is None:  # a small file that git itself stores, and knows by another sum
            return
        record, state = cache_folder() / "checked" / expected, _state(path)
        with suppress(OSError):
            if record.read_text() == state:
                return
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise ModelError(
                f"{path.resolve()}: not what {name} of {self._what} is at the hub (sha256 {expected}): "
                "damaged, here or on its way: delete this file, and the next attempt downloads it again"
            )
        with suppress(OSError):  # then it is checked again next time
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(state)


def _linked_sha256(path: Path) -> str | None:
    """The checksum by which the hub's cache names a large file's content, without asking the hub."""
    blob = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    return blob if re.fullmatch("[0-9a-f]{64}", blob) else None


def _state(path: Path) -> str:
    """What changes when the file is written."""
    found = path.stat()
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"


def _reason(error: Exception) -> str:
    """What went wrong and what helps, in a line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to download what is missing"
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            f"{constants.ENDPOINT} refuses access: accept the terms on the repository's page, and set "
            "HF_TOKEN to a token of that account (https://huggingface.co/settings/tokens)"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"no such revision at {constants.ENDPOINT}: check what stands behind the @"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return (
            f"no such repository at {constants.ENDPOINT}, or a private one: check its name, or set HF_TOKEN "
            "to a token that may read it"
        )
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, HFValidationError):
        return f"no name of a repository ({said}): expected owner/name"
    if isinstance(error, OSError) and error.errno in _DISK_REFUSES:
        return (
            f"cannot be written into the cache {constants.HF_HUB_CACHE} ({error.strerror}): make room there, "
            "or set HF_HOME to a folder on another disk"
        )
    return (
        f"cannot be fetched from {constants.ENDPOINT} ({said}): check the network and its proxy, or set "
        "HF_ENDPOINT to a mirror"
    )
