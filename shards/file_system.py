"""Opening the fsspec file system of an address, set so that no request waits for ever."""

from typing import Any

import fsspec
from fsspec.registry import known_implementations

from shards.errors import UsageError
from shards.upload import CONNECT_SECONDS, s3_options

STALL_SECONDS = 15  # how long a server may send nothing before a read counts as failed


def open_file_system(address: str) -> tuple[Any, str]:
    """The file system of an address such as `s3://bucket/prefix`, and the path in it.

    UsageError where nothing reads this kind of address, with the package to install where there is one.
    """
    protocol = address.partition("://")[0]
    try:
        fs, path = fsspec.core.url_to_fs(address, **_options(protocol))
    except ImportError as error:
        package = _package(protocol)
        remedy = f"pip install {package}" if package else str(error)
        raise UsageError(
            f"{address}: a package that reads {protocol}:// is not installed: {remedy}"
        ) from error
    except ValueError as error:
        raise UsageError(f"{address}: this kind of address is not available: {error}") from error
    if protocol in ("s3", "s3a"):
        fs.retries = 1  # `shards.retry` alone tries again
    return fs, path


def _options(protocol: str) -> dict[str, Any]:
    if protocol in ("s3", "s3a"):
        return s3_options()
    if protocol in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS)
        return {"client_kwargs": {"timeout": limits}}
    return {}


def _package(protocol: str) -> str | None:
    """The package that brings a protocol to fsspec, where fsspec knows one."""
    module = known_implementations[protocol]["class"].partition(".")[0]
    return None if module == "fsspec" else module
