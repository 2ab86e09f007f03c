"""A pipeline of the webdataset package that reads in the exact order.

python docs/examples/webdataset_pipeline.py --data shards/train --workers 2

The batches are the same, in the same order, with any number of workers; each iteration is an epoch.
"""

import argparse
import hashlib
import io

import torch
import webdataset as wds
from PIL import Image
from torchvision.transforms import v2

from shards import ShardSamples

IMAGES = ("jpg", "png", "gif", "webp", "tif", "bmp")

preprocess = v2.Compose(
    [
        v2.Resize(64, antialias=True),
        v2.CenterCrop(64),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
    ]
)


def open_image(extension: str, data: bytes) -> Image.Image | None:
    """The image in a member, of more kinds than webdataset's own decoder knows; None for other members."""
    if extension.lstrip(".") not in IMAGES:
        return None
    return Image.open(io.BytesIO(data)).convert("RGB")


def make_loader(data: str, batch_size: int, workers: int) -> wds.WebLoader:
    """Batches of (keys, images, captions)."""
    pipeline = wds.DataPipeline(
        ShardSamples(data, batch_size=batch_size, seed=0),
        wds.decode(open_image),
        wds.to_tuple("__key__", ";".join(IMAGES), "txt"),
        wds.map_tuple(None, preprocess, None),
        wds.batched(batch_size),
    )
    return wds.WebLoader(pipeline, batch_size=None, num_workers=workers)


def main() -> None:
    """Print a line for every batch of two epochs: how many samples, their pixels' checksum, the first key."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of shards with their manifest")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    loader = make_loader(arguments.data, arguments.batch_size, arguments.workers)
    for epoch in range(2):
        for keys, images, _ in loader:
            checksum = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:12]
            print(f"epoch {epoch}: {len(keys)} samples, pixels {checksum}, from {keys[0]}", flush=True)


if __name__ == "__main__":
    main()
