"""Evaluate a model on a data set, with figures and a report.

    python -m pipeline.evaluate --data shards/test --checkpoint runs/NAME/checkpoints/latest
    python -m pipeline.evaluate --data s3://bucket/test --checkpoint PMC_CLIP:beta --out evaluated/beta
    python -m pipeline.evaluate --data test.csv --checkpoint PMC_CLIP:beta
    python -m pipeline.evaluate --data shards/test --checkpoint … --task zeroshot --classes classes.json
    python -m pipeline.evaluate --data shards/test --checkpoint … --task probe knn --fit-data shards/train
    torchrun --nproc_per_node 4 -m pipeline.evaluate --data shards/test --checkpoint .../checkpoints/latest

Prints a table; writes the same figures as metrics.json, and a page to look at, report.html.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from pipeline.checks import check_at_least, check_no_file, local_path
from pipeline.cli import main
from pipeline.data import make_options
from pipeline.device import start_processes
from pipeline.evaluation.output import EvaluationOutput
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task_flags import TaskFlags
from pipeline.evaluation.tasks import Task, columns_of, make_evaluator
from pipeline.open_data import open_data
from pipeline.open_model import open_model
from pipeline.packed_table import check_tables
from pipeline.run_log import say
from pipeline.topology import Topology


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(TaskFlags):
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
    task: tuple[Task, ...] = ("retrieval",)
    """What to evaluate; several tasks share one pass over the data."""
    out: str | None = None
    """Folder for metrics.json and report.html; without it, evaluation/DATA-CHECKPOINT in the run's folder (in
    the current one for weights that are of no run), or DATA-CHECKPOINT-published with --decode published.
    """


def evaluate(config: EvaluateConfig) -> None:
    """Run the evaluators; print what they find, and write it."""
    check_at_least(config, batch_size=1, workers=1, prefetch_bytes=0)
    check_no_file("--out", local_path("--out", config.out or ""))
    config.check_tasks(config.task)
    check_tables(config, [data for data in (config.data, config.fit_data, config.val_data) if data])
    topology = Topology.from_environment()
    opened = open_model(config.checkpoint, config.model)
    dataset = open_data(config.data, topology, config)
    evaluators = [make_evaluator(task, config, topology) for task in dict.fromkeys(config.task)]
    device = start_processes(topology)
    subject = Subject(
        opened.on(device),
        opened.tokenizer,
        dataset,
        topology,
        device,
        make_options(config.workers, config.prefetch_bytes, topology, device),
        batch_size=config.batch_size,
        decode=config.decode,
        columns=columns_of(evaluators),
        captions="retrieval" in config.task,
    )
    title = f"{config.data}: {len(dataset):,} pairs; {opened.title}"
    if topology.is_main:
        print(title, flush=True)
    found = {}
    for evaluator in evaluators:
        if findings := evaluator.run(subject):
            found[evaluator.task] = findings
            print(findings.table, flush=True)
    if topology.is_main:
        suffix = "" if config.decode == "exact" else f"-{config.decode}"
        default = opened.folder / "evaluation" / f"{dataset.name}-{opened.name}{suffix}"
        output = EvaluationOutput(Path(config.out) if config.out else default)
        provenance = {
            "data": config.data,
            "fingerprint": dataset.manifest.fingerprint,
            "checkpoint": opened.source,
            **opened.progress,
            "pairs": len(dataset),
            "decode": config.decode,
        }
        output.write(title, provenance, found)
        say(f"figures: {output.metrics}\nreport: {output.report}")
    if topology.world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(evaluate, EvaluateConfig, "evaluate", __doc__ or "")
