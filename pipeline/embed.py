"""Embed a data set: the features of every image and caption, written for search and evaluation.

    python -m pipeline.embed --data shards/test --checkpoint runs/NAME/checkpoints/latest
    python -m pipeline.embed --data test.csv --checkpoint PMC_CLIP:beta --out s3://bucket/embeddings
    python -m pipeline.embed --data folder_of_images/ --checkpoint PMC_CLIP:beta
    torchrun --nproc_per_node 4 -m pipeline.embed --data shards/train --checkpoint … --dtype float16

Features are of length 1, in the order of the data set, in pieces of fixed size; each piece appears when it is
whole, and the same command again, on any number of processes, makes those that are missing.
`pipeline.embedding.reader.open_embeddings` reads them; `pipeline.search` searches them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from pipeline.checks import check_at_least, output_folder, parse_share
from pipeline.cli import main
from pipeline.data import EVALUATION_PREFETCH_BYTES, make_options
from pipeline.decode import EvalImages
from pipeline.device import end_processes, start_processes
from pipeline.embedding.compute import NoImages, write_pieces
from pipeline.embedding.job import begin, finish, merge_spans
from pipeline.embedding.manifest import EmbeddedModel, EmbeddingsManifest, Part
from pipeline.embedding.sources import Source, open_source
from pipeline.embedding.span_plan import SpanPlan, share_of
from pipeline.interrupts import quick_end
from pipeline.job_progress import JobProgress, Unit
from pipeline.loader import BadSamplePolicy, Loader
from pipeline.model_fingerprint import model_fingerprint
from pipeline.open_model import OpenedModel, open_model
from pipeline.packed_table import check_tables
from pipeline.run_log import say
from pipeline.table_flags import TableFlags
from pipeline.text import TextStage
from pipeline.topology import Topology
from pipeline.wording import counted
from shards import SampleStream, UsageError

_PATIENCE = 24 * 3600.0  # seconds: who is done waits for the others, however slow they are


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(TableFlags):
    """Flags of `pipeline.embed`."""

    data: str
    """Samples to embed: a data set of shards (a path or an address such as s3://bucket/prefix), a table, or a
    folder of images.
    """
    checkpoint: str
    """A checkpoint of a run (the file, or the `latest` beside it), or other weights as `pipeline.train
    --pretrained` reads them: a tag, a path, an address.
    """
    out: str = "embeddings"
    """Folder for the embeddings: a path or an address such as s3://bucket/prefix."""
    model: str | None = None
    """Name of a model config, or the path of one (JSON), for weights that come without; without it,
    RN50_fusion4 for these.
    """
    average: bool = False
    """Take the average of the weights that `pipeline.train --ema` keeps beside them."""
    only: Literal["image", "text"] | None = None
    """Compute the features of images or of captions alone; without it, both, as far as there are captions."""
    format: Literal["npy", "parquet"] = "npy"
    """What features are stored as: npy, which is read without copying, or columns of Parquet files."""
    dtype: Literal["float32", "float16"] = "float32"
    """Numbers that features are stored as; float16 takes half the space and moves scores by about 0.0001."""
    samples_per_piece: int = 2048
    """Samples in a piece: what is lost at most, for each process, when the work is interrupted."""
    batch_size: int = 64
    """Samples in a batch of each process."""
    decode: Literal["exact", "published"] = "exact"
    """How images are decoded: exact, or as the published code does (other modes than RGB differ)."""
    workers: int | None = None
    """Decoding threads of each process; without it, the machine's cores shared among its processes."""
    prefetch_bytes: int | None = None
    """Bytes each process reads ahead of use; without it, 2 GiB shared among a machine's processes."""
    max_bad_samples: str = "1%"
    """Share of the samples seen by a process that may be bad before the run stops (ten may, unless 0%)."""
    overwrite: bool = False
    """Replace the embeddings that the output folder holds."""


def embed(config: EmbedConfig) -> None:
    """Compute the pieces that are missing, each rank its share, and complete the manifest."""
    check_at_least(config, batch_size=1, samples_per_piece=1, workers=1, prefetch_bytes=0)
    share = parse_share("--max-bad-samples", config.max_bad_samples)
    folder = output_folder("--out", config.out)
    check_tables(config, [config.data])
    topology = Topology.from_environment()
    opened = open_model(config.checkpoint, config.model, average=config.average)
    source = open_source(config.data, topology, config)
    manifest = EmbeddingsManifest(
        _describe_model(opened, config),
        source.told,
        _parts(config, source),
        config.format,
        config.dtype,
        config.samples_per_piece,
    )
    device = start_processes(topology, _PATIENCE)
    missing: list[int] = []
    if topology.is_main:
        missing = begin(folder, manifest, overwrite=config.overwrite)
        _say_what_is_there(config.out, manifest, missing)
    own = share_of(_from_main(missing, topology), topology.rank, topology.world_size)
    if own:
        model, samples = opened.on(device), sum(stop - start for start, stop in merge_spans(manifest, own))
        with (
            quick_end(),
            _loader(config, source, manifest, own, opened, topology, device, share) as loader,
            JobProgress(samples, unit=Unit("samples")) as progress,
        ):
            write_pieces(model, loader, own, folder, manifest, device, progress)
            for reason in loader.bad_samples:
                say(f"left out: {reason}")
    end_processes(topology)
    if topology.is_main:
        print(_summary(config.out, finish(folder, manifest)), flush=True)


def _describe_model(opened: OpenedModel, config: EmbedConfig) -> EmbeddedModel:
    """How the manifest tells of the model."""
    vision = opened.model.config.vision_cfg
    return EmbeddedModel(
        _from_anywhere(opened.source),
        config.model and _from_anywhere(config.model),
        model_fingerprint(opened.model, opened.tokenizer),
        opened.tokenizer.fingerprint(),
        opened.model.config.embed_dim,
        vision.image_size,
        list(vision.mean),
        list(vision.std),
        config.decode,
        config.average,
    )


def _from_anywhere(name: str) -> str:
    """A path as it is named from any working folder; a tag or an address as it is."""
    return os.path.abspath(name) if os.path.exists(name) else name


def _parts(config: EmbedConfig, source: Source) -> list[Part]:
    if source.told.kind == "images":
        if config.only == "text":
            raise UsageError(f"--only text: {config.data} is a folder of images, which have no captions")
        return ["image"]
    return [config.only] if config.only else ["image", "text"]


def _loader(
    config: EmbedConfig,
    source: Source,
    manifest: EmbeddingsManifest,
    pieces: Sequence[int],
    opened: OpenedModel,
    topology: Topology,
    device: torch.device,
    bad_share: float,
) -> Loader:
    """A loader of the samples of these pieces, in order."""
    options = make_options(config.workers, config.prefetch_bytes, topology, device)
    stream = SampleStream(
        source.samples,
        SpanPlan(source.samples.blocks.samples, merge_spans(manifest, pieces)),
        prefetch_bytes=min(options.prefetch_bytes, EVALUATION_PREFETCH_BYTES),
        head_start=0,
    )
    size = opened.model.config.vision_cfg.image_size
    return Loader(
        stream,
        batch_size=config.batch_size,
        images=EvalImages(size, config.decode) if "image" in manifest.parts else NoImages(),
        text=TextStage(opened.tokenizer) if "text" in manifest.parts else None,
        workers=options.workers,
        pin_memory=options.pin_memory,
        bad_samples=BadSamplePolicy("leave_out", bad_share),
        draws_captions=False,
    )


def _from_main(missing: list[int], topology: Topology) -> list[int]:
    """On every rank, what the main process found missing."""
    if topology.world_size > 1:
        sent: list[Any] = [missing]
        dist.broadcast_object_list(sent)
        (missing,) = sent
    return missing


def _say_what_is_there(out: str, manifest: EmbeddingsManifest, missing: list[int]) -> None:
    there = manifest.pieces - len(missing)
    if there:
        say(f"{out}: {there:,} of {counted(manifest.pieces, 'piece')} are there already")


def _summary(out: str, manifest: EmbeddingsManifest) -> str:
    assert manifest.rows is not None
    what = " and ".join({"image": "images", "text": "captions"}[part] for part in manifest.parts)
    lines = [
        f"{out}: {counted(sum(manifest.rows), 'sample')} in {counted(manifest.pieces, 'piece')}; features of "
        f"{what}, {manifest.model.embed_dim} {manifest.dtype} each"
    ]
    if manifest.left_out:
        lines.append(f"  left out: {counted(len(manifest.left_out), 'sample')}, listed in the manifest")
    return "\n".join(lines)


if __name__ == "__main__":
    main(embed, EmbedConfig, "embed", __doc__ or "")
