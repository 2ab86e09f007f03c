"""How long a checkpoint holds up training: saved in the training thread, as before, and in the background.

    python benchmarks/checkpoints.py --models small RN50_fusion4

Both ways save the same state of the same model with AdamW's moments, in turns. The training thread computes
steps between the saves, so that the writing thread has somebody to share the machine with; what writing costs
those steps is measured too. Numbers are for local disk.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch

from pipeline.checkpoint import Checkpoint, DataState
from pipeline.checkpointing.retention import Retention
from pipeline.checkpointing.saver import WRITER, CheckpointSaver
from pmc_clip import create_model, load_model_config
from shards import Folder

SAVE_EVERY = 500


def make_state(name: str) -> Checkpoint:
    """A model and its optimiser as they are after a step."""
    config = load_model_config(name)
    model = create_model(config, mlm=True, pretrained_text=False, pretrained_image=False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    data = DataState("train", "0" * 16, 0, 384)
    return Checkpoint(
        model.state_dict(), optimizer.state_dict(), 0, 0, 1, data, config.to_dict(), "t", {"mlm": True}
    )


def save_in_thread(state: Checkpoint, path: Path) -> None:
    """As checkpoints were saved before: by torch, to the end, flushed to the disk, under a temporary name."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save({**vars(state), "data": vars(state.data)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def step(left: torch.Tensor, right: torch.Tensor) -> float:
    """Seconds of a stretch of arithmetic."""
    begin = time.perf_counter()
    for _ in range(10):
        torch.mm(left, right)
    return time.perf_counter() - begin


def measure(name: str, rounds: int, place: Path) -> None:
    """Print the table's row of a model."""
    state = make_state(name)
    size = torch.randn(384, 384)
    in_thread, in_background, alone, beside, first = [], [], [], [], 0.0
    with CheckpointSaver(Folder(place / "background"), Retention(keep_last=1)) as saver:
        for number in range(rounds + 1):
            state = Checkpoint(**{**vars(state), "step": number + 1})
            begin = time.perf_counter()
            saver.save(state)
            stall = time.perf_counter() - begin
            busy = []
            while any(thread.name == WRITER for thread in threading.enumerate()):
                busy.append(step(size, size))
            if number == 0:
                first = stall
                continue
            in_background.append(stall)
            beside += busy
            alone += [step(size, size) for _ in range(max(1, len(busy)))]
            begin = time.perf_counter()
            save_in_thread(state, place / "thread.pt")
            in_thread.append(time.perf_counter() - begin)
        saver.finish()
        gigabytes = Folder(place / "background").size(f"step-{rounds + 1:08d}.pt") / 1e9
    before, now = statistics.median(in_thread), statistics.median(in_background)
    print(
        f"| {name} | {gigabytes:.2f} GB | {before * 1000:,.0f} ms | {now * 1000:,.0f} ms "
        f"(first: {first * 1000:,.0f} ms) | {before / now:.0f} × | {now / SAVE_EVERY * 1000:.2f} ms "
        f"| {statistics.median(beside) / statistics.median(alone):.2f} × |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["small", "RN50_fusion4"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scratch", type=Path, help="folder on the disk to write to")
    arguments = parser.parse_args()
    print(
        f"| model | checkpoint | held up before | held up now | less by | for each of {SAVE_EVERY} steps "
        "| arithmetic beside the writing |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name in arguments.models:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            measure(name, arguments.rounds, Path(scratch))


if __name__ == "__main__":
    main()
