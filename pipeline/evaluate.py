"""Evaluate a model: image→text and text→image retrieval on a data set of shards.

    python -m pipeline.evaluate --data shards/test --checkpoint runs/NAME/checkpoints/latest
    python -m pipeline.evaluate --data s3://bucket/test --checkpoint .../latest --contact-sheet sheet.html
    python -m pipeline.evaluate --data shards/test --checkpoint PMC_CLIP:beta
    torchrun --nproc_per_node 4 -m pipeline.evaluate --data shards/test --checkpoint .../checkpoints/latest

Prints a table and writes the same figures as JSON.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from pipeline.checks import check_at_least, local_path
from pipeline.cli import main
from pipeline.data import evaluation_loader, make_options
from pipeline.decode import EvalImages
from pipeline.device import start_processes
from pipeline.features import compute_features
from pipeline.open_data import open_data
from pipeline.open_model import open_model
from pipeline.packed_table import check_tables
from pipeline.retrieval import retrieval_metrics
from pipeline.retrieval_sheet import write_retrieval_sheet
from pipeline.run_log import say
from pipeline.table_flags import TableFlags
from pipeline.text import TextStage
from pipeline.topology import Topology
from shards.storage import write_atomically


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(TableFlags):
    """Flags of `pipeline.evaluate`."""

    data: str
    """Folder of shards, a path or an address such as s3://bucket/prefix; or a table of images and captions.
    """
    checkpoint: str
    """A checkpoint of a run (the file, or the `latest` beside it), or other weights as `pipeline.train
    --pretrained` reads them: a tag, a path, an address.
    """
    model: str | None = None
    """Name of a model config, or the path of one (JSON), for weights that come without; without it,
    RN50_fusion4 for these.
    """
    batch_size: int = 64
    """Samples in a batch of each process."""
    decode: Literal["exact", "published"] = "exact"
    """How images are decoded: exact, or as the published code does (other modes than RGB differ)."""
    workers: int | None = None
    """Decoding threads of each process; without it, the machine's cores shared among its processes."""
    prefetch_bytes: int | None = None
    """Bytes each process reads ahead of use; without it, 2 GiB shared among a machine's processes."""
    metrics: str | None = None
    """File for the figures (JSON); without it, evaluation/DATA-CHECKPOINT.json in the run's folder (in the
    current one for weights that are of no run), or DATA-CHECKPOINT-published.json with --decode published.
    """
    contact_sheet: str | None = None
    """File for a page (HTML) of queries with their best matches."""


def evaluate(config: EvaluateConfig) -> None:
    """Compute features, then ranks; print and write them."""
    check_at_least(config, batch_size=1, workers=1, prefetch_bytes=0)
    for flag, value in (("--metrics", config.metrics), ("--contact-sheet", config.contact_sheet)):
        local_path(flag, value or "")
    check_tables(config, [config.data])
    topology = Topology.from_environment()
    opened = open_model(config.checkpoint, config.model)
    dataset = open_data(config.data, topology, config)
    device = start_processes(topology)
    model = opened.on(device)
    options = make_options(config.workers, config.prefetch_bytes, topology, device)
    images = EvalImages(model.config.vision_cfg.image_size, config.decode)
    with evaluation_loader(
        dataset,
        topology,
        batch_size=config.batch_size,
        images=images,
        text=TextStage(opened.tokenizer),
        options=options,
    ) as loader:
        features = compute_features(model, loader, device)
    if topology.is_main:
        metrics = retrieval_metrics(features.image, features.text)
        print(f"{config.data}: {len(dataset):,} pairs; {opened.title}")
        print(metrics.table(), flush=True)
        suffix = "" if config.decode == "exact" else f"-{config.decode}"
        out = (
            Path(config.metrics)
            if config.metrics
            else opened.folder / "evaluation" / f"{dataset.name}-{opened.name}{suffix}.json"
        )
        report = {
            "data": config.data,
            "fingerprint": dataset.manifest.fingerprint,
            "checkpoint": opened.source,
            **opened.progress,
            "pairs": len(dataset),
            "decode": config.decode,
            **metrics.to_dict(),
        }
        write_atomically(out, json.dumps(report, indent=1).encode())
        say(f"figures: {out}")
        if config.contact_sheet:
            write_retrieval_sheet(Path(config.contact_sheet), dataset, features, metrics)
            say(f"contact sheet: {config.contact_sheet}")
    if topology.world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(evaluate, EvaluateConfig, "evaluate", __doc__ or "")
