"""Checkpoint files at any address that fsspec opens (s3://, https://, gs://, …): downloaded once, and again
when they have changed there.

A file lies in the cache under the address of its folder, beside a record of the size and version it had
there. It gets its name when it is whole, so that an interrupted download leaves nothing that passes for it.
"""

import errno
import hashlib
import json
import logging
import os
import posixpath
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from pmc_clip.cache_folder import cache_folder, make_folder
from pmc_clip.errors import ModelError

# What file systems call that which changes with a file's content.
_VERSION_FIELDS = ("ETag", "etag", "blob_id", "LastModified", "Last-Modified", "last_modified", "mtime")
_DISK_REFUSES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_HTTP = ("http", "https")
_CONNECT_SECONDS, _STALL_SECONDS = 30, 60

logger = logging.getLogger(__name__)


class RemoteFolder:
    """The files below an address."""

    def __init__(self, fs: Any, address: str, path: str, query: str = "") -> None:
        """address, path: the folder's, for messages and for `fs`; query: what ends its files' addresses."""
        self._fs, self._address, self._path, self._query = fs, address, path, query
        self._kept = cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]

    def find(self, name: str) -> Path | None:
        """The file in the cache, downloaded if it is not there or was changed; None where there is none.

        A storage that does not answer, or refuses, is a ModelError where the cache has no copy.
        """
        kept, record = self._kept / name, self._kept / f".{name}.json"
        self._fs.invalidate_cache()
        try:
            version = _version(self._fs.info(self._source(name)))
        except Exception as error:
            if _is_absence(error):
                return None
            if kept.exists() and record.exists():
                logger.warning("%s: %s; the copy in %s is used", self._locate(name), _said(error), kept)
                return kept
            raise self._failed(name, error) from error
        if not (kept.exists() and _read_record(record) == version):
            self._fetch(name, kept, record, version)
        return kept

    def lacks(self, name: str) -> ModelError:
        """That there is no such file."""
        return ModelError(f"{self._address}: has no {name}: check the address")

    def _fetch(self, name: str, kept: Path, record: Path, version: dict[str, Any]) -> None:
        make_folder(self._kept)
        partial = self._kept / f".{name}.{uuid.uuid4().hex}.part"
        try:
            self._fs.get_file(self._source(name), str(partial))
            size = partial.stat().st_size
            if version["size"] not in (None, size):
                raise ModelError(
                    f"{self._locate(name)}: {size:,} bytes came of {version['size']:,}: the download was cut "
                    "short, or the file was written meanwhile: start it again"
                )
            record.unlink(missing_ok=True)
            os.replace(partial, kept)
            _write_record(record, version)
        except ModelError:
            raise
        except Exception as error:
            raise self._failed(name, error) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _source(self, name: str) -> str:
        return f"{self._path}/{name}{self._query}"

    def _locate(self, name: str) -> str:
        return f"{self._address}/{name}"

    def _failed(self, name: str, error: Exception) -> ModelError:
        if isinstance(error, OSError) and error.errno in _DISK_REFUSES:
            return ModelError(
                f"{self._locate(name)}: cannot be written into {self._kept} ({error.strerror}): make room "
                "there, or name a folder on another disk in XDG_CACHE_HOME"
            )
        return ModelError(
            f"{self._locate(name)}: cannot be fetched ({_said(error)}): check the address, the network and "
            "what the credentials in use may read"
        )


def open_address(address: str) -> tuple[RemoteFolder, str | None]:
    """(folder, name of a file in it), or (folder, None) where the address is a folder's."""
    protocol = address.partition("://")[0]
    bare, mark, query = address.partition("?") if protocol in _HTTP else (address, "", "")
    bare = bare.rstrip("/")
    try:
        fs, path = fsspec.core.url_to_fs(bare, **_options(protocol))
    except ImportError as error:
        raise ModelError(
            f"{address}: a package that reads {protocol}:// is not installed ({error}): install it, or copy "
            "the checkpoint here and give its path"
        ) from error
    except ValueError as error:
        raise ModelError(f"{address}: this kind of address is not known ({error})") from error
    if protocol not in _HTTP and _is_folder(fs, path):
        return RemoteFolder(fs, bare, path), None
    folder, name = posixpath.split(path)
    return RemoteFolder(fs, posixpath.dirname(bare), folder, mark + query), name


def _options(protocol: str) -> dict[str, Any]:
    """fsspec's default for the web is that a download may take five minutes, however well it goes."""
    if protocol not in _HTTP:
        return {}
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_STALL_SECONDS)
    return {"client_kwargs": {"timeout": limits}}


def _is_folder(fs: Any, path: str) -> bool:
    try:
        return bool(fs.info(path)["type"] == "directory")
    except Exception:  # whatever it is, it is met again, and explained, where the file is looked for
        return False


def _version(info: dict[str, Any]) -> dict[str, Any]:
    """What tells one state of a file from another, as JSON."""
    return {"size": info.get("size")} | {
        field: str(info[field]) for field in _VERSION_FIELDS if info.get(field)
    }


def _is_absence(error: Exception) -> bool:
    """Whether storage said that there is no such file; fsspec says so, too, where the web says nothing."""
    if not isinstance(error, FileNotFoundError):
        return False
    cause = error.__cause__
    if isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp"):
        return getattr(cause, "status", None) in (404, 410)
    return True


def _said(error: Exception) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split()) or type(cause).__name__


def _read_record(record: Path) -> object:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_record(record: Path, version: dict[str, Any]) -> None:
    draft = record.with_name(f"{record.name}.{uuid.uuid4().hex}.part")
    draft.write_text(json.dumps(version), encoding="utf-8")
    os.replace(draft, record)
