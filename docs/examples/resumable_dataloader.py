"""A PyTorch DataLoader that goes on, sample by sample, where a killed run stopped.

python docs/examples/resumable_dataloader.py --data shards/train --state state.json
torchrun --nproc_per_node 2 docs/examples/resumable_dataloader.py --data shards/train --state state.json

Kill it and start it again, with another number of workers or processes if you like: together, the runs give
each sample once in every epoch, with the same pixels as a run that was left alone.
"""

import argparse
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from shards import Sample, ShardDataset

augment = v2.Compose([v2.RandomResizedCrop(64, antialias=True), v2.PILToTensor()])


def make_example(sample: Sample, position: int) -> tuple[int, str, torch.Tensor, str]:
    """(position, key, pixels, caption). Seeded by the position: the same crop in any worker of any run."""
    image = Image.open(io.BytesIO(sample.image)).convert("RGB")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(position)
        return position, sample.key, augment(image), sample.caption


def save(state: dict[str, Any], path: Path) -> None:
    """Write the state whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(state))
    os.replace(temporary, path)


def main() -> None:
    """Print position, key and pixel checksum of every sample that this process has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of shards with their manifest")
    parser.add_argument("--state", type=Path, required=True, help="where to keep the state")
    parser.add_argument("--batch-size", type=int, default=24, help="samples of all processes together")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()

    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    batch_size = arguments.batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    dataset = ShardDataset(arguments.data, batch_size=batch_size, seed=0, transform=make_example)
    seen = 0
    if arguments.state.exists():
        state = json.loads(arguments.state.read_text())
        dataset.load_state_dict(state)
        seen = state["position"]
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=arguments.workers)

    while seen < arguments.epochs * dataset.epoch_samples:
        for positions, keys, images, _ in loader:  # up to the end of the epoch
            for position, key, pixels in zip(positions.tolist(), keys, images, strict=True):
                print(position, key, hashlib.sha256(pixels.numpy()).hexdigest()[:12], flush=True)
            if dist.is_initialized():
                dist.barrier()  # as the exchange of gradients would be: this step is done by all
            seen += dataset.global_batch
            if dataset.rank == 0:
                save(dataset.state_at(seen), arguments.state)


if __name__ == "__main__":
    main()
