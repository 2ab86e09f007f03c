"""Evaluate a model on a data set, with figures and a report.

    python -m pipeline.evaluate --data shards/test --checkpoint runs/NAME/checkpoints/latest
    python -m pipeline.evaluate --data s3://bucket/test --checkpoint PMC_CLIP:beta --out evaluated/beta
    python -m pipeline.evaluate --data test.csv --checkpoint PMC_CLIP:beta --test-2000
    python -m pipeline.evaluate --data shards/test --checkpoint … --task zeroshot --classes classes.json
    python -m pipeline.evaluate --data shards/test --checkpoint … --task probe knn --fit-data shards/train
    python -m pipeline.evaluate --embeddings embeddings --limit 2000
    torchrun --nproc_per_node 4 -m pipeline.evaluate --data shards/test --checkpoint .../checkpoints/latest

Prints a table; writes the same figures as metrics.json, a page to look at, report.html, and the samples' ids.
`pipeline.compare` puts several evaluations side by side.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from pipeline.checks import check_at_least, check_no_file, local_path
from pipeline.cli import main
from pipeline.data import make_options
from pipeline.decode import EvalDecode
from pipeline.device import start_processes
from pipeline.embedding.reader import Embeddings, open_embeddings
from pipeline.evaluation.output import EvaluationOutput, write_to_board
from pipeline.evaluation.provenance import describe_evaluation
from pipeline.evaluation.ready_features import check_embeddings, ready_features
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.subset import SubsetFlags, open_subset
from pipeline.evaluation.task_flags import TaskFlags
from pipeline.evaluation.tasks import Task, columns_of, make_evaluator
from pipeline.job_progress import JobProgress, Unit
from pipeline.loader import Batch
from pipeline.open_data import open_data
from pipeline.open_model import open_model
from pipeline.packed_table import check_tables
from pipeline.run_log import say
from pipeline.topology import Topology
from pipeline.wording import counted
from shards import UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(TaskFlags, SubsetFlags):
    """Flags of `pipeline.evaluate`."""

    data: str | None = None
    """Folder of shards, a path or an address such as s3://bucket/prefix; or a table of images and captions;
    without it, what --embeddings are of.
    """
    checkpoint: str | None = None
    """A checkpoint of a run (the file, or the `latest` beside it), or other weights as `pipeline.train
    --pretrained` reads them: a tag, a path, an address; without it, what made --embeddings.
    """
    embeddings: str | None = None
    """Folder that `pipeline.embed` wrote: retrieval from these features, without computing them again."""
    model: str | None = None
    """Name of a model config, or the path of one (JSON), for weights that come without; without it,
    RN50_fusion4 for these.
    """
    average: bool = False
    """Take the average of the weights that `pipeline.train --ema` keeps beside them."""
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
    """Folder for metrics.json, report.html and ids.txt; without it, evaluation/DATA-CHECKPOINT in the run's
    folder (in the current one for weights that are of no run), then what is special: tasks, a limit, ids,
    `published`.
    """

    def completed(self, embeddings: Embeddings | None) -> "EvaluateConfig":
        """With the data, weights and decoding of embeddings; UsageError where nothing names these."""
        if embeddings:
            model, data = embeddings.manifest.model, embeddings.manifest.data
            decode: EvalDecode = "published" if model.decode == "published" else "exact"
            completed = replace(self, data=self.data or data.address, decode=decode)
            if self.checkpoint:
                return completed
            made_by = replace(completed, checkpoint=model.checkpoint, model=model.config)
            return replace(made_by, average=model.average)
        if self.data is None or self.checkpoint is None:
            raise UsageError("give --data and --checkpoint, or --embeddings, which names both")
        return self

    def default_name(self, data: str, checkpoint: str) -> str:
        """The name of the folder without --out."""
        special: list[str] = [] if self.task == ("retrieval",) else [*self.task]
        if self.sample_limit is not None:
            special.append(str(self.sample_limit))
        if self.ids is not None:
            special.append(Path(self.ids).stem)
        if self.decode != "exact":
            special.append(self.decode)
        return "-".join([data, checkpoint, *special])


def evaluate(config: EvaluateConfig) -> None:
    """Run the evaluators; print what they find, and write it."""
    check_at_least(config, batch_size=1, workers=1, prefetch_bytes=0)
    config.check_subset()
    check_no_file("--out", local_path("--out", config.out or ""))
    config.check_tasks(config.task)
    embeddings = open_embeddings(config.embeddings) if config.embeddings else None
    config = config.completed(embeddings)
    check_tables(config, [data for data in (config.data, config.fit_data, config.val_data) if data])
    topology = Topology.from_environment()
    opened = open_model(config.checkpoint or "", config.model, average=config.average)
    whole = open_data(config.data or "", topology, config)
    evaluators = [make_evaluator(task, config, topology) for task in dict.fromkeys(config.task)]
    if embeddings:
        check_embeddings(embeddings, whole, opened, config.task, columns_of(evaluators))
    device = start_processes(topology)
    dataset, known_ids = open_subset(whole, config, topology, config.seed)
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
        known_ids=known_ids,
        watch=_follow if topology.is_main else iter,
        ready=ready_features(embeddings, whole, dataset, topology) if embeddings else None,
    )
    say(f"{config.data}: {counted(len(dataset), 'sample')}; {opened.title}", main=topology.is_main)
    found = {}
    for evaluator in evaluators:
        if findings := evaluator.run(subject):
            found[evaluator.task] = findings
            print(findings.table, flush=True)
    ids = subject.ids  # all ranks at once
    if topology.is_main:
        default = opened.folder / "evaluation" / config.default_name(whole.name, opened.name)
        output = EvaluationOutput(Path(config.out) if config.out else default)
        provenance = describe_evaluation(config.data or "", opened, subject) | {
            "subset": config.subset(whole.manifest.fingerprint, config.seed),
            "seed": config.seed,
        }
        run = Path(opened.source).parent.parent.name if opened.progress else ""
        model = f"{run}, {opened.name}" if run else opened.name
        output.write(f"{model} on {whole.name}", provenance, found, ids)
        if opened.progress and (opened.folder / "tensorboard").is_dir():
            write_to_board(opened.folder, dataset.name, opened.progress["step"], found)
        say(f"figures, ids and a report to look at: {output.report.parent}/")
    if topology.world_size > 1:
        dist.destroy_process_group()


def _follow(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches as they are, while standard error tells how many samples there were so far."""
    with JobProgress(None, unit=Unit("samples")) as progress:
        for batch in batches:
            yield batch
            progress.advance(len(batch.keys))


if __name__ == "__main__":
    main(evaluate, EvaluateConfig, "evaluate", __doc__ or "")
