"""MosaicML's StreamingDataset over its MDS format, in a torch DataLoader."""

import os
from itertools import chain, repeat

from peer import BATCH, Job, main, open_image, published_transform
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader


class Figures(StreamingDataset):
    """Images decoded and transformed, as the documentation does it: in `__getitem__`."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.transform = published_transform()

    def __getitem__(self, index: int) -> tuple:
        sample = super().__getitem__(index)
        return self.transform(open_image(sample["image"])), sample["caption"]


def prepare(job: Job) -> None:
    with MDSWriter(out=job.data, columns={"image": "bytes", "caption": "str"}) as writer:
        for row in job.rows():
            writer.write({"image": row.image.read_bytes(), "caption": row.caption})


def batches(job: Job):
    clean_stale_shared_memory()
    os.environ.setdefault("S3_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT_URL", ""))
    # An epoch longer than the data set repeats samples within a shard: right where reading costs nothing.
    local = {"local": job.data, "epoch_size": 200_000}
    place = {"remote": job.data, "local": job.cache} if job.remote else local
    dataset = Figures(**place, shuffle=True, batch_size=BATCH)
    loader = DataLoader(dataset, BATCH, drop_last=True, **job.loader_options())
    return chain.from_iterable(repeat(loader))


if __name__ == "__main__":
    main(batches, prepare)
