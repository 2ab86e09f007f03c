"""The exact order as a PyTorch data set, whose state is how many samples were seen.

dataset = ShardDataset("shards/train", batch_size=64, transform=lambda sample, position: decode(sample.image))
for epoch in range(10):
    for batch in DataLoader(dataset, batch_size=64, num_workers=4):
        ...
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset

from shards.dataset import Sample
from shards.sample_source import SampleSource


class ShardDataset(SampleSource, IterableDataset[Any]):
    """What `transform(sample, position)` makes of each sample; without it a dict of position, key, image (the
    bytes of the file) and caption.

    See `SampleSource` for what else it takes. `batch_size` is that of the DataLoader: batches are then the
    same, and in the same order, with any number of workers. What a transform draws follows from the position
    if it is seeded with it.
    """

    def __init__(
        self, *arguments: Any, transform: Callable[[Sample, int], Any] | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._transform = transform or _as_dict

    def __iter__(self) -> Iterator[Any]:
        return (self._transform(raw.read(), raw.position) for raw in self.read())


def _as_dict(sample: Sample, position: int) -> dict[str, Any]:
    image = bytes(sample.image)
    return {"position": position, "key": sample.key, "image": image, "caption": sample.caption}
