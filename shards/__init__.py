"""The storage format: tar shards with a manifest and an index, the exact order of samples, and their
fetching.

dataset = shards.open_dataset("shards/train")
order = shards.Order(dataset.blocks.samples, seed=0)
with shards.SampleStream(dataset, shards.TrainingPlan(order, rank=0, world_size=4, start=1_000)) as stream:
    for raw in stream:
        print(raw.position, raw.read().key)
"""

from shards.dataset import Dataset, Sample, SamplePlace, open_dataset
from shards.errors import DamagedSample, DataError, UsageError
from shards.manifest import Manifest, MemberNames, ShardRecord
from shards.order import DEFAULT_LANES, EvaluationPlan, Order, TrainingPlan, nearest_batch
from shards.storage import Folder
from shards.stream import DEFAULT_PREFETCH_BYTES, RawSample, SampleStream
from shards.writer import WrittenShard, write_manifest, write_shard

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
    "Order",
    "RawSample",
    "Sample",
    "SamplePlace",
    "SampleStream",
    "ShardRecord",
    "TrainingPlan",
    "UsageError",
    "WrittenShard",
    "nearest_batch",
    "open_dataset",
    "write_manifest",
    "write_shard",
]
