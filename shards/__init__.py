"""The storage format: tar shards with a manifest and an index, the exact order of samples, and their
fetching.

dataset = shards.open_dataset("shards/train")
order = shards.Order(dataset.blocks.samples, seed=0)
with shards.SampleStream(dataset, shards.TrainingPlan(order, rank=0, world_size=4, start=1_000)) as stream:
    for raw in stream:
        print(raw.position, raw.read().key)
"""

from typing import TYPE_CHECKING, Any

from shards.dataset import Dataset, Sample, SamplePlace, open_dataset
from shards.errors import DamagedSample, DataError, UsageError
from shards.manifest import Manifest, MemberNames, ShardRecord
from shards.mixture import Mixture
from shards.order import DEFAULT_LANES, Order
from shards.plans import EvaluationPlan, TrainingPlan, nearest_batch
from shards.shard_samples import ShardSamples
from shards.storage import Folder
from shards.stream import DEFAULT_PREFETCH_BYTES, RawSample, SampleStream
from shards.writer import WrittenShard, write_manifest, write_shard

if TYPE_CHECKING:
    from shards.torch_dataset import ShardDataset

__all__ = [
    "DEFAULT_LANES",
    "DEFAULT_PREFETCH_BYTES",
    "DamagedSample",
    "DataError",
    "Dataset",
    "EvaluationPlan",
    "Folder",
    "Manifest",
    "MemberNames",
    "Mixture",
    "Order",
    "RawSample",
    "Sample",
    "SamplePlace",
    "SampleStream",
    "ShardDataset",
    "ShardRecord",
    "ShardSamples",
    "TrainingPlan",
    "UsageError",
    "WrittenShard",
    "nearest_batch",
    "open_dataset",
    "write_manifest",
    "write_shard",
]


def __getattr__(name: str) -> Any:
    """`ShardDataset`, when it is asked for: it alone needs torch."""
    if name == "ShardDataset":
        from shards.torch_dataset import ShardDataset

        return ShardDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
