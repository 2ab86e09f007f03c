"""This project's loader as the training command uses it; images as uint8, normalised on the device."""

import sys

from peer import BATCH, SIZE, Job, main

from pipeline.data import LoaderOptions, open_training_data, training_loader
from pipeline.decode import TrainImages
from pipeline.topology import Topology
from pmc_clip.transforms import normalize
from shards import DEFAULT_LANES, DEFAULT_PREFETCH_BYTES

VARIANT = sys.argv[3] if len(sys.argv) > 3 else "fast"  # fast, exact, or float32: fast and normalised


def batches(job: Job):
    with training_loader(
        open_training_data([job.data], Topology(), lanes=DEFAULT_LANES, seed=0),
        Topology(),
        global_batch=BATCH,
        start=0,
        stop=None,
        images=TrainImages(SIZE, decode="exact" if VARIANT == "exact" else "fast"),
        text=None,
        options=LoaderOptions(job.workers, DEFAULT_PREFETCH_BYTES),
    ) as loader:
        for batch in loader:
            yield normalize(batch.images) if VARIANT == "float32" else batch.images, batch.captions


if __name__ == "__main__":
    main(batches)
