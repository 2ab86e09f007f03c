"""Where the time of a training step goes, and how near whole training comes to the model alone.

    python benchmarks/training.py --data shards/train
    python benchmarks/training.py --data shards/train --s3 s3://bucket/train --precision bf16
    torchrun --nproc_per_node 2 benchmarks/training.py --data shards/train --batch-size 16     # scaling

For each source in turn, round after round, it trains the same model for some steps: on one batch that is
there already (synthetic), on shards of a local disk, and on the same shards on S3 (whatever AWS_ENDPOINT_URL
names). A loader is made anew for each round, and its first steps do not count, so that none works while
another source is measured. Losses are logged every --log-every steps and a checkpoint is saved once a round,
in all alike.

- wait        for the loader's next batch
- forward     the model and the losses
- backward    and, with several processes, the averaging of gradients
- optimiser   gradient norm, update, what is left of the step
- log, save   the entry in metrics.jsonl and TensorBoard; what of a checkpoint holds the step up

`whole` is the median over rounds of a source's samples/s over the synthetic ones' of the same round; `cpu` is
processor time of the process for a sample, which other work on the machine changes little. Started with
torchrun on 1 and on 2 processes, the same batch on each, the synthetic rates say how it scales.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from pipeline.checkpointing.retention import Retention
from pipeline.checkpointing.saver import CheckpointSaver
from pipeline.data import open_training_data, training_loader
from pipeline.decode import TrainImages
from pipeline.device import allow_tf32, start_processes
from pipeline.loader import Batch
from pipeline.run_log import RunLog, say
from pipeline.text import TextStage
from pipeline.topology import Topology
from pipeline.training.config import TrainConfig
from pipeline.training.length import RunLength
from pipeline.training.progress import Progress
from pipeline.training.resume import data_state
from pipeline.training.saving import Saver
from pipeline.training.trainer import Trainer
from pmc_clip import create_model, get_tokenizer, load_model_config
from shards import Folder

WARM_UP = 2  # steps of a round that do not count
PARTS = ("wait", "forward", "backward", "optimiser", "log", "save")


@dataclass
class Clock:
    """Seconds by part of a step."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    processor: float = 0.0

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Time a part, with all that the device still does for it."""
        self._settle()
        begin = time.perf_counter()
        yield
        self._settle()
        self.seconds[part] += time.perf_counter() - begin

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is timed."""

        def call(*arguments: Any, **named: Any) -> Any:
            with self.of(part):
                return work(*arguments, **named)

        return call

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> None:
    """Measure, and print on the main process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="shards on a local disk")
    parser.add_argument("--s3", help="the same shards at an address")
    parser.add_argument("--model", default="small")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--batch-size", type=int, default=32, help="of each process")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--log-every", type=int, default=4)
    options = parser.parse_args()
    topology = Topology.from_environment()
    device = start_processes(topology)
    allow_tf32()
    sources = {"synthetic": options.data, "local": options.data} | ({"s3": options.s3} if options.s3 else {})
    clocks = {name: Clock(device) for name in sources}
    rates: dict[str, list[float]] = {name: [] for name in sources}
    trainer = make_trainer(options, topology, device)
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(options.rounds):
            for name, address in sources.items():
                clock = Clock(device)
                rates[name].append(one_round(name, address, trainer, clock, options, topology, Path(scratch)))
                for part, seconds in clock.seconds.items():
                    clocks[name].seconds[part] += seconds
                clocks[name].processor += clock.processor
    if topology.is_main:
        report(rates, clocks, options, topology)
    if topology.world_size > 1:
        dist.destroy_process_group()


def make_trainer(options: argparse.Namespace, topology: Topology, device: torch.device) -> Trainer:
    config = TrainConfig(train_data=(options.data,), mlm=True, precision=options.precision)
    torch.manual_seed(0)
    model = load_model_config(options.model)
    return Trainer(
        create_model(model, pretrained_text=False, pretrained_image=False),
        get_tokenizer(model),
        schedule=config.schedule(10**9, 0),
        optimizer=config.optimizer_options(),
        topology=topology,
        device=device,
        seed=0,
        global_batch=options.batch_size * topology.world_size,
        options=config.step_options(config.objective(), device),
    )


def one_round(
    name: str,
    address: str,
    trainer: Trainer,
    clock: Clock,
    options: argparse.Namespace,
    topology: Topology,
    scratch: Path,
) -> float:
    """Train on a source for a round: samples a second of all processes. The loop is `pipeline.train`'s."""
    config = TrainConfig(train_data=(address,), mlm=True)
    data = open_training_data((address,), topology, lanes=config.lanes, seed=0)
    tokenizer = get_tokenizer(trainer.model.config)
    steps = WARM_UP + options.steps
    start = trainer.samples_seen
    length = RunLength.plan(
        epoch=len(data),
        global_batch=trainer.global_batch,
        full=start + steps * trainer.global_batch,
        most=None,
        start=start,
    )
    loader = training_loader(
        data,
        topology,
        global_batch=trainer.global_batch,
        start=start,
        stop=length.stop,
        images=TrainImages(trainer.model.config.vision_cfg.image_size, config.crop_scale),
        text=TextStage(tokenizer, mask_ratio=config.mask_ratio),
        options=config.loader_options(topology, trainer.model.logit_scale.device),
    )
    with ExitStack() as stack:
        stack.enter_context(loader)
        batches = iter(loader)
        if name == "synthetic":
            batch = next(batches)
            loader.close()
            batches = repeat(copy_of(batch))
        log, saver = None, None
        if topology.is_main:
            log = RunLog(scratch / f"{name}-{start}", trainer.step)
            files = stack.enter_context(
                CheckpointSaver(
                    Folder(str(scratch / "checkpoints")), Retention(1), step=trainer.step, samples_seen=start
                )
            )
            saver = Saver(files, data_state(data), trainer.model.config, tokenizer.fingerprint(), {})
        progress = stack.enter_context(Progress(loader, log, topology, length))
        progress._plain = False
        begin = used = 0.0
        for step in range(steps):
            if step == WARM_UP:
                progress.restart_clock(trainer.samples_seen)
                stack.enter_context(timed_parts(trainer, clock))
                begin, used = time.perf_counter(), time.process_time()
            measured = clock if step >= WARM_UP else Clock(clock.device)
            with measured.of("wait"):
                batch = next(batches)
            with measured.of("optimiser"):
                losses = trainer.train_step(batch)
            if (step + 1 - WARM_UP) % options.log_every == 0:
                with measured.of("log"):
                    progress.log(trainer, batch, losses, trainer.learning_rate)
            if step == steps - 1 and saver:
                with measured.of("save"):
                    saver.save(trainer)
        seconds = time.perf_counter() - begin
        clock.processor = time.process_time() - used
    clock.seconds["optimiser"] -= clock.seconds["forward"] + clock.seconds["backward"]
    return options.steps * trainer.global_batch / seconds


@contextmanager
def timed_parts(trainer: Trainer, clock: Clock) -> Iterator[None]:
    """Within, the forward and the backward pass of steps are timed."""
    forward, backward = trainer._forward, torch.Tensor.backward
    trainer._forward = clock.timed("forward", forward)  # type: ignore[assignment]
    torch.Tensor.backward = clock.timed("backward", backward)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        trainer._forward, torch.Tensor.backward = forward, backward  # type: ignore[method-assign]


def copy_of(batch: Batch) -> Batch:
    """A batch that outlives its loader's buffers."""
    images = batch.images.clone(memory_format=torch.preserve_format)
    batch.images = images
    return batch


def report(
    rates: dict[str, list[float]],
    clocks: dict[str, Clock],
    options: argparse.Namespace,
    topology: Topology,
) -> None:
    steps = options.steps * options.rounds
    say(
        f"{options.model}, {options.precision}, {options.batch_size} × {topology.world_size} samples a step, "
        f"{options.rounds} rounds of {options.steps} steps, {torch.get_num_threads()} arithmetic threads each"
    )
    print(
        f"{'source':<12}{'samples/s':>10}{'whole':>8}{'cpu':>10}" + "".join(f"{part:>11}" for part in PARTS)
    )
    for name, clock in clocks.items():
        share = median(
            own / synthetic for own, synthetic in zip(rates[name], rates["synthetic"], strict=True)
        )
        cells = "".join(f"{1000 * clock.seconds[part] / steps:>8.1f} ms" for part in PARTS)
        cpu = 1000 * clock.processor / (steps * options.batch_size)
        print(f"{name:<12}{median(rates[name]):>10.1f}{share:>8.1%}{cpu:>7.1f} ms{cells}")


if __name__ == "__main__":
    main()
