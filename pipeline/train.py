"""Train PMC-CLIP on shards, on one process or many.

    python -m pipeline.train --train-data shards/train --val-data shards/valid --model tiny --epochs 2 --mlm
    torchrun --nproc_per_node 4 -m pipeline.train --train-data shards/train --batch-size 128 --mlm
    python -m pipeline.train --train-data shards/pmc=0.7 's3://bucket/more/{000..163}.tar=0.3' --mlm
    python -m pipeline.train --train-data shards/train --pretrained PMC_CLIP:beta --mlm --accum 4 --compile
    python -m pipeline.train ...the same flags... --resume auto

A run lives in runs/NAME: config.json, metrics.jsonl, tensorboard/, checkpoints/. Killed at any moment and
started again with the same command and `--resume auto`, it ends with the same weights, bit for bit.
"""

import json
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from pipeline.cli import main
from pipeline.data import describe_training, open_training_data, reading_advice, training_loader
from pipeline.device import allow_tf32, end_processes, start_processes
from pipeline.first_rank import decided_by_first
from pipeline.interruption import Interruption
from pipeline.lost_process import naming_lost_processes
from pipeline.open_data import open_data
from pipeline.run_log import say
from pipeline.text import TextStage
from pipeline.topology import Topology
from pipeline.training.config import TrainConfig
from pipeline.training.loop import Loop
from pipeline.training.profiling import StepProfiler
from pipeline.training.progress import Progress
from pipeline.training.run_files import RunFiles
from pipeline.training.saved_config import saved_flags
from pipeline.training.start import Start, find_start, run_config
from pipeline.training.starting_model import begin_with_pretrained, config_to_train
from pipeline.training.summary import summarize
from pipeline.training.trainer import Trainer
from pipeline.training.validation import Validation
from pmc_clip import ModelConfig, Tokenizer, create_model, get_tokenizer, load_model_config
from shards import Folder, Mixture


def train(config: TrainConfig) -> None:
    """Train as the flags say; ends with exit code 75 where it was asked to end and has saved."""
    config.check()
    topology = Topology.from_environment()
    folder = config.run_folder(config.model, "") if config.name else None
    try:
        with naming_lost_processes(topology), Interruption(topology, folder) as interruption:
            train_until_asked_to_end(config, topology, interruption)
    except Exception:
        if config.debug:
            traceback.print_exc()
        raise


def train_until_asked_to_end(config: TrainConfig, topology: Topology, interruption: Interruption) -> None:
    """The whole job of one process."""
    # Before the processes wait for one another, which has a time limit: describing tars can take longer.
    data = open_training_data(
        config.train_data, topology, lanes=config.lanes, seed=config.seed, tables=config
    )
    valid = open_data(config.val_data, topology, config) if config.val_data else None
    device = start_processes(topology, config.timeout)
    allow_tf32()
    model_config = config_to_train(
        load_model_config(config.model), config.loss, mask_padding=config.mask_padding
    )
    config.check_locks(model_config, config.first_weights)
    tokenizer = get_tokenizer(model_config)
    folder = interruption.folder = config.run_folder(config.model, data.name)
    if decided_by_first(topology, interruption.asked_before):
        end_processes(topology)
        interruption.end("the same torchrun has started the processes once more")

    address = config.run_address(folder)
    start = find_start(config, Folder(f"{address}/checkpoints"), data, model_config, tokenizer, topology)
    run = run_config(config, start, topology)
    trainer = build_trainer(config, start, model_config, tokenizer, topology, device)
    start = start.taken_over()
    if topology.is_main:
        introduce(config, data, start, trainer, run, folder, topology, device)
    files = RunFiles.open(
        folder, address, config, start, trainer, data=data, tokenizer=tokenizer, run=run, topology=topology
    )
    options = config.loader_options(topology, device)
    validation = None
    if valid:
        validation = Validation(valid, tokenizer, config.eval_decode, options, topology, device)
    loader = training_loader(
        data,
        topology,
        global_batch=start.length.global_batch,
        start=start.length.start,
        stop=start.length.stop,
        images=config.train_images(model_config.vision_cfg.image_size),
        text=TextStage(tokenizer, seed=config.seed, mask_ratio=config.mask_ratio if config.mlm else 0.0),
        options=options,
    )
    loop = Loop(config, start, trainer, files, validation, interruption, topology, folder)
    interruption.begin_steps()
    with (
        options.cache or nullcontext(),
        loader,
        files,
        Progress(loader, files.log, topology, start.length, data) as progress,
        StepProfiler(folder, config.profile and topology.is_main) as profiler,
    ):
        interrupted = loop.run(loader, progress, profiler)
    files.finish()
    interruption.end_steps()
    end_processes(topology)
    if interrupted:
        interruption.end(f"saved after step {trainer.step:,}")
    say(f"done: {trainer.step:,} steps, {trainer.samples_seen:,} samples seen", main=topology.is_main)


def introduce(
    config: TrainConfig,
    data: Mixture,
    start: Start,
    trainer: Trainer,
    run: dict[str, Any],
    folder: Path,
    topology: Topology,
    device: torch.device,
) -> None:
    """Say what the run is, before it begins."""
    for line in (*config.explain(), *describe_training(data), reading_advice(data, topology)):
        say(line)
    if config.fsdp and topology.world_size == 1:
        say("--fsdp: one process keeps the model whole, and writes its checkpoints as files")
    say(summarize(folder, trainer.model, config, start.length, topology, device))
    if config.debug:
        say(json.dumps(run, indent=1))


def build_trainer(
    config: TrainConfig,
    start: Start,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    topology: Topology,
    device: torch.device,
) -> Trainer:
    """The model and its optimiser, where the run stands."""
    torch.manual_seed(config.seed)
    drawn = start.checkpoint is None and config.first_weights is None
    model = create_model(
        model_config,
        mlm=config.mlm,
        pretrained_text=drawn,
        pretrained_image=(config.pretrained_image or None) if drawn else False,
    )
    if config.first_weights and not start.checkpoint:
        say(begin_with_pretrained(model, config.first_weights), main=topology.is_main)
    config.synchronise_batch_norms(model, topology, device)
    config.lock(model)
    horizon = start.length.horizon
    trainer = Trainer(
        model,
        tokenizer,
        schedule=config.schedule(horizon, config.warmup_samples(horizon, start.step_samples)),
        optimizer=config.optimizer_options(),
        topology=topology,
        device=device,
        seed=config.seed,
        global_batch=start.length.global_batch,
        options=config.step_options(config.objective(), device),
    )
    if start.checkpoint:
        trainer.load(start.checkpoint)
        if start.checkpoint.average and not config.ema:
            say("the average of the weights ends here, without --ema", main=topology.is_main)
    return trainer


if __name__ == "__main__":
    main(train, TrainConfig, "train", __doc__ or "", defaults=saved_flags)
