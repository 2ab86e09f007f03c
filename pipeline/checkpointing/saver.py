"""Saves a run's checkpoints while it goes on: copied by the training thread, written by one of its own."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.checkpoint import Checkpoint
from pipeline.checkpointing.forms import Form, OneFile
from pipeline.checkpointing.ledger import Best, Ledger
from pipeline.checkpointing.places import delete_checkpoint, parts_name, point_at_best, remove_left_behind
from pipeline.checkpointing.retention import Kept, Retention
from pipeline.checkpointing.snapshot import Snapshot
from pipeline.run_log import say
from shards import DataError, Folder

WRITER = "checkpoint-writer"  # the name of the thread


class CheckpointSaver:
    """Writes checkpoints into a folder, one at a time, and deletes those that need not stay.

    Where storage refuses one, that is said, the run goes on, and the older ones stay; `finish` raises it if
    it was the last. A block (`with saver:`) ends when what was being written is there, however it ends.

    step, samples_seen: where the run goes on from.
    form: how they are written. With `InParts` each process has a saver, and all are given the same to do.
    is_main: whether this one also deletes, and says what is done.
    after_save: called on the writing thread after each checkpoint.
    """

    def __init__(
        self,
        folder: Folder,
        retention: Retention,
        *,
        step: int = 0,
        samples_seen: int = 0,
        form: Form | None = None,
        is_main: bool = True,
        after_save: Callable[[], None] | None = None,
    ) -> None:
        self._folder, self._retention, self._after_save = folder, retention, after_save
        self._form, self._is_main = form or OneFile(), is_main
        self._snapshot = Snapshot()
        self._work: threading.Thread | None = None
        self._crash: BaseException | None = None
        self._lost: DataError | None = None  # why the newest state is not on its storage
        self._ledger = Ledger.read(folder) if is_main else Ledger()
        self._ledger.forget_after(step)
        self._samples_before = samples_seen
        self.saved_step = step
        """The step of the newest state that was given to be written, or that the run began with."""
        if is_main:
            remove_left_behind(folder)
            self._restore_best()

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy a state and return; it is on its way then. Waits for the one before it, if that still is."""
        self.wait()
        copy = Checkpoint(**self._snapshot.take(vars(checkpoint)))
        self.saved_step = checkpoint.step
        self._begin(lambda: self._write(copy))

    def beats_best(self, metric: str, value: float, *, higher_is_better: bool) -> bool:
        """Whether a validation's value is better than that of the best checkpoint so far."""
        best = self._ledger.best
        if math.isnan(value) or best is None or best.metric != metric:
            return not math.isnan(value)
        return value > best.value if higher_is_better else value < best.value

    def keep_best(self, metric: str, value: float) -> None:
        """Let the best be the checkpoint that was saved last."""
        self.wait()
        if self._lost is None and self._is_main:
            best = Best(metric, value, self.saved_step)
            self._begin(lambda: self._keep_best(best))

    def finish(self) -> None:
        """Wait for the last checkpoint; DataError if it could not be written."""
        self.wait()
        if self._lost is not None:
            raise DataError(
                f"{self._lost}; earlier checkpoints are whole: make room and start the same command with "
                "--resume auto"
            ) from self._lost

    def _begin(self, work: Callable[[], None]) -> None:
        self._work = threading.Thread(target=self._run, args=(work,), name=WRITER)
        self._work.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # for the training thread to raise
            self._crash = error

    def wait(self) -> None:
        """Return when what was being written is there."""
        if self._work is not None:
            self._work.join()
            self._work = None
        if self._crash is not None:
            raise self._crash

    def _write(self, checkpoint: Checkpoint) -> None:
        self._snapshot.wait()
        begin = time.monotonic()
        try:
            address = self._form.write(checkpoint, self._folder)
        except DataError as error:
            self._lost = error
            say(f"warning: {error}; the run goes on, and earlier checkpoints stay", main=self._is_main)
            return
        self._lost = None
        if self._is_main:
            say(f"saved {address} in {time.monotonic() - begin:.1f} s")
            self._enter(checkpoint)

    def _enter(self, checkpoint: Checkpoint) -> None:
        """Enter a new checkpoint in the ledger, and delete those that need not stay any more."""
        for_good = self._retention.stays_for_good(checkpoint.samples_seen, self._samples_before)
        self._samples_before = checkpoint.samples_seen
        self._ledger.add(
            Kept(self._form.name(checkpoint.step), checkpoint.step, checkpoint.samples_seen, for_good)
        )
        with _telling_failures():
            # Before anything is deleted: what a kill leaves is then still known as the run's own.
            self._ledger.write(self._folder)
            for superfluous in self._retention.too_many(self._ledger.checkpoints):
                if superfluous.name != self._best_name():
                    delete_checkpoint(self._folder, superfluous.name)
                    self._ledger.checkpoints.remove(superfluous)
            self._tell_saved()

    def _keep_best(self, best: Best) -> None:
        with _telling_failures():
            self._form.keep_best(best.step, self._folder)
            self._ledger.best = best
            self._ledger.write(self._folder)
            self._tell_saved()

    def _restore_best(self) -> None:
        """Let `best` name what is kept as such: a kill may have come between the one and the other."""
        best = self._ledger.best
        if best and any(kept.name == self._best_name() for kept in self._ledger.checkpoints):
            point_at_best(self._folder, best.step)

    def _best_name(self) -> str | None:
        """What the best is called where it is in parts, and so has no other name."""
        return parts_name(self._ledger.best.step) if self._ledger.best else None

    def _tell_saved(self) -> None:
        if self._after_save:
            self._after_save()


@contextmanager
def _telling_failures() -> Iterator[None]:
    """Within, what storage refuses is no more than a warning: the checkpoint itself is there."""
    try:
        yield
    except DataError as error:
        say(f"warning: {error}; the run goes on")
