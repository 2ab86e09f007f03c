"""litdata's StreamingDataset over chunks that its `optimize` wrote, in its StreamingDataLoader."""

import os

from litdata import ParallelStreamingDataset, StreamingDataLoader, StreamingDataset, optimize
from litdata.streaming import downloader
from peer import BATCH, Job, Row, main, open_image, published_transform


def read(row: Row) -> dict:
    return {"image": row.image.read_bytes(), "caption": row.caption}


def prepare(job: Job) -> None:
    optimize(
        fn=read,
        inputs=job.rows(),
        output_dir=job.data,
        chunk_bytes="64MB",
        num_workers=1,
        reorder_files=False,
        start_method="fork",
        verbose=False,
    )


class Transform:
    """A sample of the only data set to image and caption."""

    def __init__(self) -> None:
        self.image = published_transform()

    def __call__(self, samples: tuple) -> tuple:
        (sample,) = samples
        return self.image(open_image(sample["image"])), sample["caption"]


def batches(job: Job):
    options = {}
    if job.remote:
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"  # the server here has no TLS
        server = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        options = {"cache_dir": job.cache, "storage_options": server}
    dataset = StreamingDataset(job.data, shuffle=True, max_pre_download=job.prefetch, **options)
    endless = ParallelStreamingDataset([dataset], length=float("inf"), transform=Transform())
    return iter(StreamingDataLoader(endless, batch_size=BATCH, drop_last=True, **job.loader_options()))


if __name__ == "__main__":
    main(batches, prepare)
