"""Bring a published data set from the Hugging Face hub, ready for `pipeline.shard`.

    python -m pipeline.download pmc-oa --out data/
    HF_ENDPOINT=https://mirror.example HF_TOKEN=hf_… python -m pipeline.download pmc-oa-beta

Known are pmc-oa (PMC-OA: 1.6 million figures of PubMed Central with captions) and pmc-oa-beta (its beta
version), from https://huggingface.co/datasets/axiong/pmc_oa. Interrupted, the same command goes on where it
stopped. The images stay in their zip file: `pipeline.shard` reads it as it is.
"""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.checks import local_path
from pipeline.cli import main
from pipeline.sharding.hub_files import HubFile, describe_files, fetch_file, is_complete
from shards import DataError, UsageError


@dataclass(frozen=True)
class PublishedDataSet:
    """Where a data set lies on the hub."""

    repository: str
    table: str
    images: str

    @property
    def name(self) -> str:
        """What its shards are called here."""
        return Path(self.table).stem


DATA_SETS = {
    "pmc-oa": PublishedDataSet("axiong/pmc_oa", "pmc_oa.jsonl", "images.zip"),
    "pmc-oa-beta": PublishedDataSet("axiong/pmc_oa", "pmc_oa_beta.jsonl", "images.zip"),
}


@dataclass(frozen=True)
class DownloadConfig:
    """Flags of `pipeline.download`."""

    data_set: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA-SET")]
    """Name of the data set: pmc-oa or pmc-oa-beta."""
    out: str = "data"
    """Folder for the files."""


def download(config: DownloadConfig) -> None:
    """Fetch what is missing of the data set and say what to do with it."""
    if config.data_set not in DATA_SETS:
        raise UsageError(f"no data set {config.data_set!r}: known are {', '.join(DATA_SETS)}")
    data_set, folder = DATA_SETS[config.data_set], local_path("--out", config.out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: this is a file; give a folder")
    files = describe_files(data_set.repository, [data_set.table, data_set.images])
    missing = [file for file in files if not is_complete(file, folder)]
    check_free_disk(folder, missing)
    for file in files:
        if file in missing:
            fetch_file(file, folder)
        print(f"{file.path(folder)}: {file.size / 1e6:,.1f} MB, sha256 as published", flush=True)
    print(f"next: {shard_command(data_set, folder)}")


def check_free_disk(folder: Path, missing: list[HubFile]) -> None:
    """Refuse a download that the disk has no room for; bytes of an earlier attempt are there already."""
    needed = sum(file.missing_bytes(folder) for file in missing)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DataError(
            f"{folder}: {needed / 1e9:,.2f} GB are still to be fetched "
            f"({', '.join(file.name for file in missing)}), and {free / 1e9:,.2f} GB are free on the disk of "
            f"{there}: free some, or give another --out"
        )


def shard_command(data_set: PublishedDataSet, folder: Path) -> str:
    """The command that packs the downloaded data set into shards."""
    table, images = folder / data_set.table, folder / data_set.images
    words = ["--csv", str(table), "--images", str(images), "--out", f"shards/{data_set.name}"]
    words += ["--split", "train=0.9,valid=0.05,test=0.05"]
    return f"python -m pipeline.shard {shlex.join(words)}"


if __name__ == "__main__":
    main(download, DownloadConfig, "download", __doc__ or "")
