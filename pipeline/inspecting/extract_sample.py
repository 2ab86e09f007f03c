"""Writing one sample's members as files: never outside the folder, whatever its key is."""

import json
import re
from pathlib import Path

from pipeline.indexing.report import printable
from shards import DataError, Sample, UsageError
from shards.storage import write_atomically

_LONGEST_NAME = 200  # bytes; file systems take 255


def extract_sample(sample: Sample, out: Path) -> list[Path]:
    """Write KEY.EXTENSION for every member into `out`; UsageError where another file has that name."""
    paths = [out / file_name(sample.key, extension) for extension in sample.members]
    for path, content in zip(paths, sample.members.values(), strict=True):
        if path.exists() and not (path.is_file() and path.read_bytes() == content):
            raise UsageError(f"{path} is there already and is something else: choose another --out")
    for path, content in zip(paths, sample.members.values(), strict=True):
        try:
            write_atomically(path, content)
        except OSError as error:
            raise DataError(
                f"{path}: writing failed: {error.strerror}; make room or give another --out"
            ) from error
    return paths


def file_name(key: str, extension: str) -> str:
    """A plain file name for a member: no folders, no hidden file, and no longer than file systems take."""
    name = re.sub(r"[/\\\x00-\x1f\x7f]", "_", printable(f"{key}.{extension}")).lstrip(".") or "_"
    return name.encode()[-_LONGEST_NAME:].decode(errors="ignore").lstrip(".")


def show_sample(sample: Sample, paths: list[Path]) -> str:
    """What a person wants to see of a sample: its files, caption and JSON."""
    lines = [f"sample {printable(sample.key)}"]
    lines += [
        f"  wrote {path} ({len(content):,} bytes)"
        for path, content in zip(paths, sample.members.values(), strict=True)
    ]
    lines += ["caption:", _safe(sample.caption)]
    if "json" in sample.members:
        lines += ["json:", _safe(_pretty(bytes(sample.members["json"])))]
    return "\n".join(lines)


def _pretty(content: bytes) -> str:
    try:
        return json.dumps(json.loads(content), indent=1, ensure_ascii=False)
    except (ValueError, RecursionError):
        return content.decode(errors="backslashreplace")


def _safe(text: str) -> str:
    """The text without what would steer a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", printable(text))
