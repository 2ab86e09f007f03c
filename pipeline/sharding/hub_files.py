"""Files of a data set repository on the Hugging Face hub: what they are, and fetching them so that an
interrupted download goes on where it stopped.

`hf_hub_download` and its Xet transfer begin anew after a kill (huggingface_hub 2.4). Here a file grows by
ranged requests under a partial name that holds its checksum, and gets its own name once that is right.
Sign-in, endpoint, redirects and retries are huggingface_hub's, set by its variables (HF_TOKEN, HF_ENDPOINT).
"""

import fcntl
import hashlib
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars
from huggingface_hub.utils.logging import set_verbosity_error
from tqdm import tqdm

from shards import DataError

FRUITLESS_ATTEMPTS = 3
SECONDS_BETWEEN_LINES = 10.0
PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
KEPT = "what was fetched is kept: the same command goes on with the rest"


@dataclass(frozen=True)
class HubFile:
    """A file of one commit of a repository: name, size in bytes, checksum and address."""

    name: str
    size: int
    sha256: str
    url: str

    def path(self, folder: Path) -> Path:
        """Where the whole file lies in a local folder."""
        return folder / self.name

    def partial_path(self, folder: Path) -> Path:
        """Where it grows: the bytes of another version of the file are never taken for its beginning."""
        return folder / f"{self.name}.{self.sha256[:12]}.part"

    def missing_bytes(self, folder: Path) -> int:
        """Bytes still to be fetched, where the whole file is not there yet."""
        here = _size(self.partial_path(folder))
        return self.size - here if here <= self.size else self.size


def describe_files(repository: str, names: Sequence[str]) -> list[HubFile]:
    """The named files of a data set repository as its newest commit has them, from the hub's metadata."""
    with explained(f"data set {repository}"):
        info = HfApi().dataset_info(repository, files_metadata=True)
    found = {file.rfilename: file for file in info.siblings or []}
    files = []
    for name in names:
        if name not in found:
            raise DataError(
                f"data set {repository} at {constants.ENDPOINT} has no file {name} any more: it has "
                f"{', '.join(found) or 'none'}"
            )
        checksum = found[name].lfs
        if checksum is None:
            raise DataError(
                f"{name} of data set {repository}: {constants.ENDPOINT} gives no sha256 of it, so that it "
                "could not be checked: point HF_ENDPOINT to the hub itself or to a full mirror"
            )
        url = hf_hub_url(repository, name, repo_type="dataset", revision=info.sha)
        files.append(HubFile(name, checksum.size, checksum.sha256, url))
    return files


def is_complete(file: HubFile, folder: Path) -> bool:
    """Whether the file lies in the folder, whole and right; DataError where another of its name does."""
    path = file.path(folder)
    if not path.exists():
        return False
    if _size(path) != file.size or _sha256(path) != file.sha256:
        raise DataError(
            f"{path} ({_size(path):,} bytes) is not the hub's file of that name ({file.size:,} bytes, sha256 "
            f"{file.sha256}): move it away or give another --out, and start the same command again"
        )
    return True


def fetch_file(file: HubFile, folder: Path) -> None:
    """Bring the file into the folder, going on where an earlier attempt stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.partial_path(folder)
    for outdated in folder.glob(f"{file.name}.*.part"):
        if outdated != partial:
            outdated.unlink()
    with explained(str(file.path(folder))), _open_alone(partial, file) as target:
        _fetch_rest(file, target)
        if _sha256(partial) != file.sha256:
            partial.unlink()
            raise DataError(
                f"{file.path(folder)}: what came from {constants.ENDPOINT} has not the sha256 that its "
                f"metadata gives ({file.sha256}): it changed or was damaged on its way and is removed; start "
                "the same command again"
            )
        os.replace(partial, file.path(folder))


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Inside, errors of the network, the hub and the disk become a DataError about `what`, with a remedy."""
    try:
        yield
    except DataError:
        raise
    except OfflineModeIsEnabled:
        raise DataError(f"{what}: HF_HUB_OFFLINE is set, so that nothing is fetched: unset it") from None
    except (HTTPError, OSError, ValueError) as error:
        raise DataError(f"{what}: {_reason(error)}; {KEPT}") from error


def _fetch_rest(file: HubFile, target: "_GrowingFile") -> None:
    """Append what is missing; passing trouble ends it only where several attempts in a row bring nothing."""
    disable_progress_bars()  # hub's own bar knows no log files
    set_verbosity_error()
    # A compressed answer could not be gone on with from a byte of the file itself.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    fruitless = 0
    while True:
        here = target.seek(0, os.SEEK_END)
        if here > file.size:
            target.truncate(0)
            continue
        try:
            http_get(file.url, target, resume_size=here, headers=headers, expected_size=file.size)
            target.flush()
            return
        except (HTTPError, OSError) as error:
            target.flush()
            fruitless = 0 if target.tell() > here else fruitless + 1
            if not _passes(error) or fruitless == FRUITLESS_ATTEMPTS:
                raise
            time.sleep(1)


class _GrowingFile(io.BufferedRandom):
    """A partial file open for appending; says on standard error how far it has come."""

    def __init__(self, raw: io.FileIO, partial: Path, file: HubFile) -> None:
        super().__init__(raw)
        self._file, self._began = file, _size(partial)
        self._bar = tqdm(
            desc=file.name,
            initial=self._began,
            total=file.size,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        )
        self._begin = self._last = time.monotonic()

    def write(self, data: Any) -> int:
        """Append, and show it."""
        written = super().write(data)
        here, now = self.tell(), time.monotonic()
        self._bar.update(here - self._bar.n)
        if self._bar.disable and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            rate = (here - self._began) / (now - self._begin)
            left = tqdm.format_interval((self._file.size - here) / rate)
            print(
                f"{self._file.name}: {here / 1e6:,.0f} of {self._file.size / 1e6:,.0f} MB, "
                f"{rate / 1e6:,.1f} MB/s, about {left} left",
                file=sys.stderr,
                flush=True,
            )
        return written

    def close(self) -> None:
        """Close the file and the bar."""
        self._bar.close()
        super().close()


@contextmanager
def _open_alone(partial: Path, file: HubFile) -> Iterator[_GrowingFile]:
    """The partial file, for this process only."""
    with _GrowingFile(
        io.FileIO(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+"), partial, file
    ) as target:
        try:
            fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{partial}: another download is writing it: wait for that, or end it") from None
        except OSError:
            pass  # some network file systems know no locks
        yield target


def _passes(error: Exception) -> bool:
    """Whether trying again may help: trouble on the way or at the server, none of the disk or of rights."""
    if isinstance(error, HfHubHTTPError):
        return error.response is None or error.response.status_code in PASSING_STATUSES
    return isinstance(error, HTTPError) or not _is_of_disk(error)


def _is_of_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno is not None


def _reason(error: Exception) -> str:
    """What went wrong and what helps, in a line."""
    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        return (
            f"{constants.ENDPOINT} refuses access ({response.status_code}): accept the data set's terms on "
            "its page, and set HF_TOKEN to a token of that account (https://huggingface.co/settings/tokens)"
        )
    if response is not None and response.status_code == 404:
        return (
            f"not found at {constants.ENDPOINT} (404): HF_ENDPOINT must name the hub or a full mirror of it"
        )
    if _is_of_disk(error):
        return f"cannot be written ({error}): free some disk or give another --out"
    said = " ".join(str(error).split()) or type(error).__name__
    return (
        f"cannot be fetched from {constants.ENDPOINT} ({said}): check the network and its proxy, or set "
        "HF_ENDPOINT to a mirror"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
