"""Files on their way to remote storage: each appears there only when it is whole."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from fsspec.config import conf

from shards.retry import retry

PART_BYTES = 16 * 2**20  # of an upload in parts, and the most that an upload holds in memory
CONNECT_SECONDS, READ_SECONDS = 10, 30  # how long a server may say nothing before a try counts as failed


def s3_options() -> dict[str, Any]:
    """Options of the S3 file system with which a request is tried once, and ends where no byte comes.

    s3fs and botocore would each try again by themselves; `retry` is the one place that does.
    """
    timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    theirs = conf.get("s3", {}).get("config_kwargs", {})
    config = {**timeouts, **theirs, "retries": {"total_max_attempts": 1}}
    return {"config_kwargs": config, "use_listings_cache": False}


class S3Upload:
    """One object for S3: a single request where it is small, else an upload in parts, sent as they fill."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path
        self._bucket, self._key, _ = fs.split_path(path)
        self._token = uuid.uuid4().hex
        self._part = bytearray()
        self._upload_id: str | None = None
        self._begun = 0  # requests to begin an upload, answered or not
        self._sent: list[dict[str, Any]] = []

    def write(self, data: "bytes | bytearray | memoryview") -> None:
        """Append bytes."""
        rest = memoryview(data)
        while len(self._part) + len(rest) >= PART_BYTES:
            room = PART_BYTES - len(self._part)
            self._part += rest[:room]
            rest = rest[room:]
            self._send_part()
        self._part += rest

    def finish(self) -> None:
        """Send what is left and let the object appear."""
        if not self._sent:
            retry(lambda: self._call("put_object", Body=self._part))
            return
        if self._part:
            self._send_part()
        retry(self._complete)
        if self._begun > 1:  # a request to begin whose answer was lost may have begun one that nobody knows
            abort_uploads(self._fs, [self._path])

    def discard(self) -> None:
        """Give up; what cannot be removed now is left to `abort_uploads`."""
        if self._upload_id is not None:
            with contextlib.suppress(Exception):
                self._call("abort_multipart_upload", UploadId=self._upload_id)

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._fs.call_s3(method, Bucket=self._bucket, Key=self._key, **arguments)
        return answer

    def _send_part(self) -> None:
        if self._upload_id is None:
            self._upload_id = retry(self._begin)
        number, body = len(self._sent) + 1, self._part
        self._part = bytearray()
        answer = retry(
            lambda: self._call("upload_part", UploadId=self._upload_id, PartNumber=number, Body=body)
        )
        self._sent.append({"PartNumber": number, "ETag": answer["ETag"]})

    def _begin(self) -> str:
        self._begun += 1
        upload_id: str = self._call("create_multipart_upload", Metadata={"upload": self._token})["UploadId"]
        return upload_id

    def _complete(self) -> None:
        try:
            parts = {"Parts": self._sent}
            self._call("complete_multipart_upload", UploadId=self._upload_id, MultipartUpload=parts)
        except FileNotFoundError:
            # No such upload: an earlier try may have completed it although its answer was lost.
            if self._call("head_object").get("Metadata", {}).get("upload") != self._token:
                raise


class StagedUpload:
    """One file for any other remote storage: gathered in a local temporary file, then sent as a whole."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115 (closed by finish or discard)

    def write(self, data: "bytes | bytearray | memoryview") -> None:
        """Append bytes."""
        self._file.write(data)

    def finish(self) -> None:
        """Send the file."""
        self._file.flush()
        retry(lambda: self._fs.put_file(self._file.name, self._path))
        self._file.close()

    def discard(self) -> None:
        """Give up."""
        self._file.close()


def abort_uploads(fs: Any, paths: Iterable[str]) -> None:
    """Remove the unfinished uploads of exactly these objects on S3, which cost money as long as they stay.

    Where the credentials may not list or abort uploads, they stay.
    """
    places = [fs.split_path(path) for path in paths]
    keys = {key for _, key, _ in places}
    prefix = os.path.commonprefix(list(keys))  # noqa: RUF071 (S3 knows no folders: any common beginning will do)
    with contextlib.suppress(PermissionError, FileNotFoundError, NotImplementedError):
        for bucket in {bucket for bucket, _, _ in places}:
            for key, upload_id in list(_unfinished(fs, bucket, prefix)):
                if key in keys:
                    _abort(fs, bucket, key, upload_id)


def _unfinished(fs: Any, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    """The (key, upload id) of every unfinished upload to keys that begin with the prefix."""
    markers: dict[str, str] = {}
    while True:
        list_page = partial(fs.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **markers)
        page = retry(list_page)
        yield from ((upload["Key"], upload["UploadId"]) for upload in page.get("Uploads", []))
        if not page.get("IsTruncated"):
            return
        markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _abort(fs: Any, bucket: str, key: str, upload_id: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # it has ended in the meantime
        retry(lambda: fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id))
