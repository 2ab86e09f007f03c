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
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.checkpoint import Checkpoint
from pipeline.cli import main
from pipeline.data import (
    check_global_batch,
    describe_training,
    open_training_data,
    reading_advice,
    training_loader,
)
from pipeline.device import start_processes
from pipeline.evaluation.retrieval import RetrievalEvaluator
from pipeline.evaluation.subject import Subject
from pipeline.open_data import open_data
from pipeline.run_log import RunLog, say
from pipeline.text import TextStage
from pipeline.topology import Topology
from pipeline.training.config import DEFAULT_EPOCHS, TrainConfig
from pipeline.training.progress import Progress
from pipeline.training.resume import check_same_run, choose_global_batch, data_state, find_checkpoint
from pipeline.training.schedule import CosineSchedule, RunLength
from pipeline.training.starting_model import begin_with_pretrained, config_to_train
from pipeline.training.trainer import OptimizerOptions, StepOptions, Trainer
from pmc_clip import PMCCLIP, create_model, get_tokenizer, load_model_config
from shards.storage import write_atomically


def train(config: TrainConfig) -> None:
    """Train as the flags say."""
    config.check()
    topology = Topology.from_environment()
    # Before the processes wait for one another, which has a time limit: describing tars can take longer.
    train_data = open_training_data(
        config.train_data, topology, lanes=config.lanes, seed=config.seed, tables=config
    )
    valid = open_data(config.val_data, topology, config) if config.val_data else None
    device = start_processes(topology)
    model_config = config_to_train(
        load_model_config(config.model), config.loss, mask_padding=config.mask_padding
    )
    tokenizer = get_tokenizer(model_config)
    image_size = model_config.vision_cfg.image_size
    data = data_state(train_data)
    folder = Path(config.logs) / (config.name or f"{Path(config.model).stem}-{train_data.name}")

    # Where the run stands.
    checkpoint = None
    if path := find_checkpoint(config, folder, topology):
        checkpoint = Checkpoint.load(path)
        check_same_run(
            checkpoint,
            path,
            data=data,
            model=model_config,
            tokenizer=tokenizer.fingerprint(),
            mlm=config.mlm,
        )
        say(f"going on from {path}: step {checkpoint.step:,}", main=topology.is_main)
    global_batch = choose_global_batch(config, checkpoint, topology)
    check_global_batch(global_batch, topology, train_data)
    config.check_parts(global_batch // topology.world_size)
    length = RunLength.plan(
        epoch=len(train_data),
        global_batch=global_batch,
        epochs=config.epochs or (None if config.steps else DEFAULT_EPOCHS),
        steps=config.steps,
        start=checkpoint.samples_seen if checkpoint else 0,
        step=checkpoint.step if checkpoint else 0,
    )

    # The model and its optimiser.
    torch.manual_seed(config.seed)
    drawn = checkpoint is None and config.pretrained is None
    model = create_model(
        model_config, mlm=config.mlm, pretrained_text=drawn, pretrained_image=None if drawn else False
    )
    if checkpoint:
        model.load_state_dict(checkpoint.state_dict)
    elif config.pretrained:
        say(begin_with_pretrained(model, config.pretrained), main=topology.is_main)
    warmup = (
        min(10_000 * global_batch, length.horizon // 10)
        if config.warmup is None
        else config.warmup * global_batch
    )
    schedule = CosineSchedule(config.lr, warmup, length.horizon)
    trainer = Trainer(
        model,
        tokenizer,
        schedule=schedule,
        optimizer=OptimizerOptions(config.beta1, config.beta2, config.eps, config.wd),
        topology=topology,
        device=device,
        seed=config.seed,
        options=StepOptions(
            config.objective(),
            bf16=config.precision == "bf16" or (config.precision is None and device.type == "cuda"),
            parts=config.accum,
            compiled=config.compile,
        ),
    )
    if checkpoint:
        trainer.load_optimizer(checkpoint.optimizer)
        trainer.step, trainer.samples_seen = checkpoint.step, checkpoint.samples_seen

    # The data.
    options = config.loader_options(topology, device)
    log = None
    if topology.is_main:
        say("\n".join(describe_training(train_data)) + f"; {reading_advice(train_data, topology)}")
        say(_summary(folder, model, config, length, topology, device))
        log = RunLog(folder, trainer.step)
        run = asdict(config) | {"global_batch_size": global_batch, "world_size": topology.world_size}
        write_atomically(folder / "config.json", json.dumps(run, indent=1).encode())

    def save() -> None:
        if not topology.is_main:
            return
        state = Checkpoint(
            state_dict=model.state_dict(),
            optimizer=trainer.optimizer.state_dict(),
            step=trainer.step,
            samples_seen=trainer.samples_seen,
            global_batch=global_batch,
            data=data,
            model=model_config.to_dict(),
            tokenizer=tokenizer.fingerprint(),
            config=asdict(config),
        )
        say(f"saved {state.save(folder / 'checkpoints')}")

    def validate() -> None:
        if valid is None:
            return
        trainer.synchronise_buffers()
        subject = Subject(
            trainer.model, tokenizer, valid, topology, device, options, decode=config.eval_decode
        )
        findings = RetrievalEvaluator().run(subject)
        if log and findings:
            log.write(trainer.step, trainer.samples_seen, findings.values, "valid")
            say(f"validation after step {trainer.step:,}: {findings.line}")

    loader = training_loader(
        train_data,
        topology,
        global_batch=global_batch,
        start=length.start,
        stop=length.stop,
        images=config.train_images(image_size),
        text=TextStage(tokenizer, seed=config.seed, mask_ratio=config.mask_ratio if config.mlm else 0.0),
        options=options,
    )
    cache = options.cache or nullcontext()
    with cache, loader, Progress(loader, log, topology, length, train_data) as progress:
        for batch in loader:
            learning_rate = trainer.learning_rate
            losses = trainer.train_step(batch, global_batch)
            progress.advance()
            last = trainer.samples_seen >= length.stop
            epochs_done = length.ends_epoch(trainer.samples_seen)
            if last or trainer.step % config.log_every == 0:
                progress.log(trainer, losses, learning_rate)
            if last or (trainer.step % config.save_every == 0 if config.save_every else epochs_done):
                save()
                progress.restart_clock(trainer.samples_seen)
            if last or (epochs_done and epochs_done % config.val_frequency == 0):
                validate()
                progress.restart_clock(trainer.samples_seen)
    say(f"done: {trainer.step:,} steps, {trainer.samples_seen:,} samples seen", main=topology.is_main)
    if log:
        log.close()
    if topology.world_size > 1:
        dist.destroy_process_group()


def _summary(
    folder: Path,
    model: PMCCLIP,
    config: TrainConfig,
    length: RunLength,
    topology: Topology,
    device: torch.device,
) -> str:
    """The run in one line, before it begins."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = (length.stop - length.start) // length.global_batch
    own_batch = length.global_batch // topology.world_size
    parts = f" in {config.accum} parts" if config.accum > 1 else ""
    return (
        f"{folder}: {parameters / 1e6:.1f} M parameters on {topology.world_size} × {device.type}; "
        f"loss {config.objective().describe(mlm=config.mlm)}; "
        f"{own_batch}{parts} × {topology.world_size} = {length.global_batch} "
        f"samples a step; "
        f"{steps:,} steps, {(length.stop - length.start) / length.epoch:.1f} epochs to go"
    )


if __name__ == "__main__":
    main(train, TrainConfig, "train", __doc__ or "")
