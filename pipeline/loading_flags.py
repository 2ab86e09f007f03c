"""The flags of every command that loads training samples, and the loader options that they stand for."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from pipeline.checks import check_at_least, local_path, parse_bytes, parse_share
from pipeline.data import LoaderOptions, make_options
from pipeline.decode import TrainImages
from pipeline.loader import BadSamplePolicy
from pipeline.table_flags import TableFlags
from pipeline.topology import Topology
from pipeline.user_transform import load_transform
from shards import UsageError
from shards.disk_cache import DiskCache


@dataclass(frozen=True, kw_only=True)
class LoadingFlags(TableFlags):
    """How a command loads training samples."""

    crop_scale: float = 0.9
    """Smallest share of an image's area that a crop has."""
    decode: Literal["fast", "exact", "published"] = "fast"
    """How images are decoded: fast, exact (full decode, Pillow's resize), or as the published code does."""
    workers: int | None = None
    """Decoding threads of each process; without it, the machine's cores shared among its processes."""
    prefetch_bytes: int | None = None
    """Bytes each process reads ahead of use; without it, 2 GiB shared among a machine's processes."""
    cache_dir: str | None = None
    """Folder on this machine's disk that keeps what was read from remote storage, shared by its processes."""
    cache_size: str = "100GB"
    """Bytes that --cache-dir may hold; data sets that are no longer used make way."""
    on_bad_sample: Literal["substitute", "fail"] = "substitute"
    """What a damaged or undecodable sample does: another stands in for it, or the run stops."""
    max_bad_samples: str = "1%"
    """Share of the samples seen by a process that may be bad before the run stops (ten may, unless 0%)."""
    columns: tuple[str, ...] = ()
    """Columns of the samples (values of their .json) that batches carry, such as licence."""
    transform: str | None = None
    """Python function that changes every sample, as module:function; see pipeline/user_transform.py."""

    def check_loading(self) -> None:
        """Raise UsageError where the flags cannot be."""
        check_at_least(self, workers=1, prefetch_bytes=0)
        if not 0 < self.crop_scale <= 1:
            raise UsageError(f"--crop-scale {self.crop_scale}: it must lie above 0 and at most at 1")
        parse_share("--max-bad-samples", self.max_bad_samples)
        parse_bytes("--cache-size", self.cache_size)

    def train_images(self, size: int) -> TrainImages:
        """The image stage for crops of `size` pixels."""
        return TrainImages(size, self.crop_scale, self.decode)

    @property
    def eval_decode(self) -> Literal["exact", "published"]:
        """How images are decoded where the run is validated: as the published code does only if asked to."""
        return "published" if self.decode == "published" else "exact"

    def loader_options(self, topology: Topology, device: torch.device | None = None) -> LoaderOptions:
        """The loader options that the flags stand for."""
        share = parse_share("--max-bad-samples", self.max_bad_samples)
        size = parse_bytes("--cache-size", self.cache_size)
        return replace(
            make_options(self.workers, self.prefetch_bytes, topology, device),
            cache=DiskCache(local_path("--cache-dir", self.cache_dir), size) if self.cache_dir else None,
            bad_samples=BadSamplePolicy(self.on_bad_sample, share),
            columns=self.columns,
            transform=load_transform(self.transform) if self.transform else None,
        )
