"""Megatron-Energon over WebDataset tars that its `energon prepare` has indexed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from megatron.energon import (
    Batch,
    CaptioningSample,
    DefaultTaskEncoder,
    SampleDecoder,
    WorkerConfig,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)
from peer import BATCH, Job, main, published_transform


@edataclass
class Figures(Batch):
    """What is trained on."""

    image: torch.Tensor
    caption: list[str]


class Transform(DefaultTaskEncoder[CaptioningSample, CaptioningSample, Figures, Figures]):
    """Pillow images transformed as the published code does."""

    decoder = SampleDecoder(image_decode="pil")

    def __init__(self) -> None:
        super().__init__(raw_batch_type=Figures)
        self.transform = published_transform()

    @stateless(restore_seeds=True)
    def encode_sample(self, sample: CaptioningSample) -> CaptioningSample:
        sample.image = self.transform(sample.image)
        return sample

    @stateless
    def batch(self, samples: list[CaptioningSample]) -> Figures:
        images = torch.stack([sample.image for sample in samples])  # quicker than the default, which pads
        return Figures.from_samples(samples, image=images)


def prepare(job: Job) -> None:
    """Index hard links of the shards, since the index lies beside them."""
    folder = Path(job.data)
    folder.mkdir(parents=True)
    for shard in job.shards():
        os.link(shard, folder / shard.name)
    fields = {"image": "jpg,png,gif", "caption": "txt"}
    options = ["--non-interactive", "--no-progress", "--split-ratio=1,0,0", "--num-workers=2"]
    options += ["--sample-type=CaptioningSample", f"--field-map={json.dumps(fields)}"]
    energon = Path(sys.executable).with_name("energon")
    subprocess.run([energon, "prepare", folder, *options], check=True)


def multi_storage(job: Job) -> str:
    """The data's address for NVIDIA's Multi-Storage Client, which is configured by a file."""
    bucket, _, path = job.data.removeprefix("s3://").partition("/")
    server = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": os.environ["AWS_DEFAULT_REGION"]}
    keys = {"access_key": os.environ["AWS_ACCESS_KEY_ID"], "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"]}
    profile = {
        "storage_provider": {"type": "s3", "options": {"base_path": bucket, **server}},
        "credentials_provider": {"type": "S3Credentials", "options": keys},
    }
    config = Path(job.cache) / "multi_storage.json"
    config.write_text(json.dumps({"profiles": {"bench": profile}}))
    os.environ["MSC_CONFIG"] = str(config)
    return f"msc://bench/{path}"


def batches(job: Job):
    dataset = get_train_dataset(
        multi_storage(job) if job.remote else job.data,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=job.workers),
        batch_size=BATCH,
        shuffle_buffer_size=100,
        max_samples_per_sequence=100,
        task_encoder=Transform(),
    )
    for batch in get_loader(dataset, prefetch_factor=job.prefetch):
        yield batch.image, batch.caption


if __name__ == "__main__":
    main(batches, prepare)
