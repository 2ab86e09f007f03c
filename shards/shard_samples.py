"""The exact order as the first stage of a pipeline of the `webdataset` package.

    pipeline = wds.DataPipeline(ShardSamples("shards/train"), wds.decode("pil"), wds.to_tuple("jpg;png",
    "txt"))

It stands where a list of shards, their splitting by node and worker, `tarfile_to_samples` and `shuffle`
would.
"""

from collections.abc import Iterator
from typing import Any

from shards.sample_source import SampleSource
from shards.stream import RawSample


class ShardSamples(SampleSource):
    """Samples as webdataset has them: a dict with `__key__`, `__url__` (of the shard) and the bytes of each
    member under its extension; beside them `__position__`, the sample's place in the stream.

    See `SampleSource` for what it takes. Each iteration goes on where the last one ended, so it also does
    under `with_epoch` (with DataLoader workers, use `samples` instead). `batch_size` is that of `wds.batched`
    behind it: batches are then the same, and in the same order, with any number of DataLoader workers.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(webdataset_sample, self.read())

    def __call__(self) -> Iterator[dict[str, Any]]:
        """What `wds.DataPipeline` calls its first stage for."""
        return iter(self)


def webdataset_sample(raw: RawSample) -> dict[str, Any]:
    """A sample as the dict that webdataset's own reader would make of it, and its position."""
    sample = raw.read()
    found: dict[str, Any] = {"__key__": sample.key, "__url__": raw.dataset.shard_address(raw.block)}
    found["__position__"] = raw.position
    return found | {extension: bytes(data) for extension, data in sample.members.items()}
