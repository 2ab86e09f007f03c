"""Look at a data set: its summary, whether its shards are whole, one of its samples.

python -m pipeline.inspect --data shards/train
python -m pipeline.inspect --data s3://bucket/pmc/train --verify
python -m pipeline.inspect --data shards/train --sample 000012345 --out figures/
"""

import time
from dataclasses import dataclass

from pipeline.checks import check_at_least, check_no_file, local_path
from pipeline.cli import main
from pipeline.inspecting.extract_sample import extract_sample, show_sample
from pipeline.inspecting.find_sample import find_sample
from pipeline.inspecting.summary import summarise
from pipeline.inspecting.verify import remedy, unlisted_tars, verify_shards
from pipeline.wording import counted
from shards import DataError, Dataset, UsageError, open_dataset


@dataclass(frozen=True)
class InspectConfig:
    """Flags of `pipeline.inspect`."""

    data: str
    """Folder of shards: a path or an address such as s3://bucket/prefix."""
    verify: bool = False
    """Read all shards again and compare them with the manifest and the index."""
    sample: str | None = None
    """Key of a sample to write into files and to show."""
    out: str | None = None
    """Folder for the files of --sample; without it, the current one."""
    workers: int | None = None
    """Processes that read shards for --verify; without it, one for each core."""


def inspect(config: InspectConfig) -> None:
    """Print what the flags ask for."""
    check_at_least(config, workers=1)
    if config.out is not None and config.sample is None:
        raise UsageError("--out is the folder for the files of --sample KEY: give that too")
    out = local_path("--out", config.out or ".")
    check_no_file("--out", out)
    dataset = open_dataset(config.data)
    if config.sample is not None:
        sample = find_sample(dataset, config.sample)
        print(show_sample(sample, extract_sample(sample, out)))
    else:
        print(summarise(dataset))
    if config.verify:
        _verify(dataset, config.workers)


def _verify(dataset: Dataset, workers: int | None) -> None:
    """Print every bad shard with all that is wrong with it; DataError where there is one."""
    begin = time.perf_counter()
    bad, unlisted = verify_shards(dataset, workers), unlisted_tars(dataset)
    for shard in bad:
        print(f"{shard.address}: {'; '.join(shard.problems)}")
    for address in unlisted:
        print(f"{address}: the manifest does not list it")
    shards, seconds = len(dataset.manifest.shards), time.perf_counter() - begin
    if bad:
        raise DataError(f"{len(bad):,} of {counted(shards, 'shard')} bad: {remedy(dataset)}")
    if unlisted:
        raise DataError(
            f"{counted(len(unlisted), 'tar')} not of this data set: move them elsewhere, or they will be "
            "taken for its shards"
        )
    print(
        f"verified: {counted(shards, 'shard')}, {counted(dataset.manifest.indexed_samples, 'sample')}; size, "
        f"sha256, number of samples and every sample's checksum are right ({seconds:.1f} s, "
        f"{dataset.manifest.total_bytes / 1e6 / seconds:,.0f} MB/s)"
    )


if __name__ == "__main__":
    main(inspect, InspectConfig, "inspect", __doc__ or "")
