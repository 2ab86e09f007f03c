"""open_clip's own training, reading in the exact order: our data set in place of its `get_wds_dataset`.

pip install open_clip_torch
python docs/examples/open_clip_training.py --train-data shards/train --val-data shards/valid \\
    --dataset-type webdataset --model ViT-B-32 --batch-size 256 --epochs 30 --workers 4
torchrun --nproc_per_node 8 docs/examples/open_clip_training.py ...

Every flag is open_clip's; --train-data and --val-data are folders of shards with their manifest (s3://… too).
`--train-num-samples` is the samples of one of its epochs (default: all), rounded up to whole global batches.
The next epoch goes on where the last one ended, so no sample is left out or repeated before all had their
turn; a run that goes on from a checkpoint (`--resume`) reads what it would have read.
"""

import functools
import io
import sys
from typing import Any

import open_clip_train.data
import torch
from open_clip_train.data import DataInfo
from open_clip_train.main import main
from PIL import Image
from torch.utils.data import DataLoader

from shards import Sample, ShardDataset, open_dataset


def get_exact_dataset(
    args: Any, preprocess_img: Any, is_train: bool, epoch: int = 0, floor: bool = False, tokenizer: Any = None
) -> DataInfo:
    """The batches of this process, as open_clip's `get_wds_dataset` gives them."""
    shards = open_dataset(args.train_data if is_train else args.val_data)
    transform = functools.partial(make_example, preprocess=preprocess_img, tokenizer=tokenizer)
    if is_train:
        global_batch = args.batch_size * args.world_size
        batches = -(-(args.train_num_samples or len(shards)) // global_batch)
        samples = batches * global_batch
        dataset = ShardDataset(
            shards,
            batch_size=args.batch_size,
            seed=args.seed,
            start=epoch * samples,
            samples=samples,
            rank=args.rank,
            world_size=args.world_size,
            transform=transform,
        )
    else:  # open_clip evaluates on its first process alone
        samples, batches = len(shards), -(-len(shards) // args.batch_size)
        dataset = ShardDataset(
            shards, batch_size=args.batch_size, shuffle=False, rank=0, world_size=1, transform=transform
        )
    dataloader = DataLoader(
        dataset,
        args.batch_size,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=True,
    )
    dataloader.num_batches, dataloader.num_samples = batches, samples
    return DataInfo(dataloader)


def make_example(
    sample: Sample, position: int, preprocess: Any, tokenizer: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and token ids. Seeded by the position: the same crop in any worker of any run."""
    image = Image.open(io.BytesIO(sample.image)).convert("RGB")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(position)
        return preprocess(image), tokenizer(sample.caption)[0]


if __name__ == "__main__":
    open_clip_train.data.get_wds_dataset = get_exact_dataset
    main(sys.argv[1:])
