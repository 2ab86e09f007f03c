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
from dataclasses import asdict

import torch

from pipeline.boards import parse_boards
from pipeline.checkpointing.saver import CheckpointSaver
from pipeline.cli import main
from pipeline.data import describe_training, open_training_data, reading_advice, training_loader
from pipeline.device import allow_tf32, end_processes, start_processes
from pipeline.first_rank import decided_by_first
from pipeline.interruption import Interrupted, Interruption
from pipeline.lost_process import naming_lost_processes
from pipeline.open_data import open_data
from pipeline.run_log import RunLog, say
from pipeline.run_mirror import RunMirror
from pipeline.text import TextStage
from pipeline.topology import Topology
from pipeline.training.config import TrainConfig
from pipeline.training.profiling import StepProfiler
from pipeline.training.progress import Progress
from pipeline.training.resume import data_state
from pipeline.training.saved_config import saved_flags
from pipeline.training.saving import Saver
from pipeline.training.start import Start, find_start, run_config
from pipeline.training.starting_model import begin_with_pretrained, config_to_train
from pipeline.training.summary import summarize
from pipeline.training.trainer import Trainer
from pipeline.training.validation import Validation
from pmc_clip import ModelConfig, Tokenizer, create_model, get_tokenizer, load_model_config
from shards import Folder
from shards.storage import write_atomically


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
    train_data = open_training_data(
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
    image_size = model_config.vision_cfg.image_size
    folder = interruption.folder = config.run_folder(config.model, train_data.name)
    if decided_by_first(topology, interruption.asked_before):
        end_processes(topology)
        interruption.end("the same torchrun has started the processes once more")

    address = config.run_address(folder)
    checkpoints = Folder(f"{address}/checkpoints")
    mirror = RunMirror(folder, address) if checkpoints.remote and topology.is_main else None
    start = find_start(config, checkpoints, train_data, model_config, tokenizer, topology)
    length, run = start.length, run_config(config, start, topology)
    trainer = build_trainer(config, start, model_config, tokenizer, topology, device)
    options = config.loader_options(topology, device)
    log: RunLog | None = None
    files: CheckpointSaver | None = None
    if topology.is_main:
        for line in (*config.explain(), *describe_training(train_data), reading_advice(train_data, topology)):
            say(line)
        say(summarize(folder, trainer.model, config, length, topology, device))
        if config.debug:
            say(json.dumps(run, indent=1))
        if mirror:
            mirror.fetch()
            say(f"logs are written to {folder}, and to {address} with each checkpoint")
        log = RunLog(folder, trainer.step, parse_boards(config.report_to), asdict(config))
        write_atomically(folder / "config.json", json.dumps(run, indent=1).encode())
        files = CheckpointSaver(
            checkpoints,
            config.retention(length.epoch),
            step=trainer.step,
            samples_seen=trainer.samples_seen,
            after_save=mirror.send if mirror else None,
        )
        saver = Saver(files, data_state(train_data), model_config, tokenizer.fingerprint(), run)
    validation = None
    if valid:
        validation = Validation(valid, tokenizer, config.eval_decode, options, topology, device)

    def save() -> None:
        if topology.is_main:
            saver.save(trainer)

    def validate() -> bool:
        """Whether it was not given up."""
        if validation is None:
            return True
        try:
            with trainer.ready_for_evaluation(averaged=config.val_weights != "current") as model:
                found = validation.run(model, interruption.watch)
        except Interrupted:
            return False
        if log and found:
            findings, pictures = found
            values = {name: value for one in findings for name, value in one.values.items()}
            log.show(trainer.step, "valid/matches", pictures.picture, pictures.legend())
            log.write(trainer.step, trainer.samples_seen, values, "valid")
            say(f"validation after step {trainer.step:,}: {'; '.join(one.line for one in findings)}")
            if config.keep_best:
                saver.keep_if_best(trainer, config.keep_best, values[config.keep_best])
        return True

    loader = training_loader(
        train_data,
        topology,
        global_batch=length.global_batch,
        start=length.start,
        stop=length.stop,
        images=config.train_images(image_size),
        text=TextStage(tokenizer, seed=config.seed, mask_ratio=config.mask_ratio if config.mlm else 0.0),
        options=options,
    )
    cache = options.cache or nullcontext()
    log_period = 1 if config.debug else config.log_every * start.step_samples
    save_periods = config.save_periods(length.epoch, start.step_samples)
    interruption.begin_steps()
    # A run that was killed or asked to end while it validated does so now.
    due = start.checkpoint and config.is_due(length, trainer.samples_seen)
    owed = due and decided_by_first(topology, lambda: not (log and log.kept("valid", trainer.step)))
    interrupted = bool(owed) and not validate()
    with (
        cache,
        loader,
        files or nullcontext(),
        Progress(loader, log, topology, length, train_data) as progress,
        StepProfiler(folder, config.profile and topology.is_main) as profiler,
    ):
        for batch in () if interrupted else loader:
            learning_rate = trainer.learning_rate
            losses = trainer.train_step(batch)
            trainer.non_finite.end_if_hopeless(folder)
            profiler.step()
            progress.advance()
            last = trainer.samples_seen >= length.stop
            if last or length.passes(trainer.samples_seen, log_period):
                progress.log(trainer, batch, losses, learning_rate)
            if last or any(length.passes(trainer.samples_seen, period) for period in save_periods):
                save()
                progress.restart_clock(trainer.samples_seen)
            if config.is_due(length, trainer.samples_seen):
                interrupted = not validate()
                progress.restart_clock(trainer.samples_seen)
            if interrupted or (not last and interruption.agreed()):
                interrupted = True
                save()
                break
    if log:
        log.close()
    if files:
        files.finish()
    if mirror:
        mirror.send()
    interruption.end_steps()
    end_processes(topology)
    if interrupted:
        interruption.end(f"saved after step {trainer.step:,}")
    say(f"done: {trainer.step:,} steps, {trainer.samples_seen:,} samples seen", main=topology.is_main)


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
