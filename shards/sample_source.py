"""The exact order for programs that bring their own loader: the samples of one process or one DataLoader
worker, going on from iteration to iteration.
"""

import os
import pickle
from collections.abc import Iterator
from typing import Any

from shards.dataset import Dataset, open_dataset
from shards.errors import UsageError
from shards.joined import JoinedDataset
from shards.mixture import Mixture
from shards.order import DEFAULT_LANES
from shards.plans import EvaluationPlan
from shards.reader_place import find_rank, find_worker
from shards.standing import SharedStanding, Standing
from shards.stream import DEFAULT_PREFETCH_BYTES, RawSample, SampleStream
from shards.worker_share import WorkerShare


class SampleSource:
    """The samples that this process, or this DataLoader worker, is to have, in the order of the data set.

    data: the path or address of a data set, an open one, or a `Mixture` (which has its own seed and lanes).
    batch_size: samples of one rank in a batch. seed, lanes: of the order. start: the position to begin at:
    the number of samples seen by all ranks together. samples: how many samples one iteration gives to all
    ranks together; None: those up to the end of the epoch. Both are rounded up to whole global batches, so
    that all ranks have equally many; the next iteration begins where the last one ended.

    shuffle: False for an evaluation: each sample once, in manifest order, each rank its share, from the
    beginning in every iteration. rank, world_size: where not given, those of torch.distributed if it is
    initialised, else of the environment (RANK, WORLD_SIZE). prefetch_bytes: how much all processes of a
    machine together fetch ahead.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Dataset | Mixture,
        *,
        batch_size: int = 1,
        seed: int = 0,
        lanes: int = DEFAULT_LANES,
        start: int = 0,
        samples: int | None = None,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch_bytes: int = DEFAULT_PREFETCH_BYTES,
    ) -> None:
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("samples", samples, 1),
            ("start", start, 0),
        ):
            if number is not None and number < least:
                raise UsageError(f"{name}={number}: it must be {least} or more")
        if not shuffle and (start or samples):
            raise UsageError("start= and samples= mean nothing with shuffle=False: an evaluation reads all")
        if isinstance(data, (str, os.PathLike)):
            data = open_dataset(data)
        self._mixture = data if isinstance(data, Mixture) else Mixture([data], [lanes], seed)
        for dataset in self._mixture.datasets:
            if not len(dataset):
                raise UsageError(f"{dataset.folder.address}: this data set has no samples; leave it out")
        self._opened_by = os.getpid()
        self.rank, self.world_size = find_rank(rank, world_size)
        self._global_batch = batch_size * self.world_size
        self._samples = samples
        self._shuffle = shuffle
        self._prefetch_bytes = prefetch_bytes
        self._standing = SharedStanding(self._iteration_from(start))
        # A StatefulDataLoader asks a worker that had ended when the state was saved once more; so both count.
        self._ended = False  # this worker's iteration is over, and its standing that of the next
        self._ended_before = False  # it was, in the state that was loaded
        self._reads_in = 0  # the process of the latest iteration
        self._placed = False  # this worker goes on from a state that was loaded

    @property
    def global_batch(self) -> int:
        """Samples in a batch of all ranks together."""
        return self._global_batch

    @property
    def epoch_samples(self) -> int:
        """Samples in an epoch, of all ranks together."""
        return len(self._mixture)

    def read(self) -> Iterator[RawSample]:
        """The samples of one iteration; in a DataLoader worker, those of the batches that it makes.

        Nothing is fetched before the first one is asked for. Then it takes the place of an older iteration,
        which raises UsageError when asked for more. So does this one where an older one was left early while
        DataLoader workers read.
        """
        if self._ended_before:
            self._ended_before = False
            return iter(())
        new, self._reads_in = self._reads_in != os.getpid(), os.getpid()
        if not new:  # what a worker that has just been made knows is what held when it was asked for
            self._standing.look()
        return self._train(new) if self._shuffle else self._evaluate()

    def _evaluate(self) -> Iterator[RawSample]:
        worker, workers = find_worker()
        plan = EvaluationPlan(self._dataset().blocks.samples, self.rank, self.world_size)
        batch = self._global_batch // self.world_size
        share = WorkerShare(plan, worker or 0, workers or 1, batch, step=1, origin=plan.span[0])
        with self._open_stream(share) as stream:
            yield from stream

    def _train(self, new: bool) -> Iterator[RawSample]:
        worker, workers = find_worker()
        reading = self._standing.begin(worker, workers, new=new, placed=self._placed)
        standing = self._standing.of(worker)
        origin, stop = standing.origin, standing.stop
        plan = self._mixture.plan(self.rank, self.world_size, standing.position, stop)
        share = WorkerShare(plan, worker or 0, workers or 1, self._global_batch, plan.step, origin)
        self._ended = self._placed = False
        with self._open_stream(share) as stream:
            for raw in stream:
                # Of each world_size positions every rank takes one: so many were seen once this one is.
                seen = raw.position - (raw.position - origin) % self.world_size + self.world_size
                self._standing.note(reading, Standing(origin, seen, stop))
                yield raw
        self._standing.note(reading, self._iteration_from(stop))
        self._ended = True

    def _iteration_from(self, position: int) -> Standing:
        wanted = self._samples or self.epoch_samples - position % self.epoch_samples
        return Standing(position, position, position + self._whole_batches(wanted))

    def _whole_batches(self, samples: int) -> int:
        return -(-samples // self._global_batch) * self._global_batch

    def _open_stream(self, share: WorkerShare) -> SampleStream:
        processes = share.workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return SampleStream(self._dataset(), share, prefetch_bytes=self._prefetch_bytes // processes)

    def _dataset(self) -> Dataset | JoinedDataset:
        """The data set, with connections of this process: those from before a fork are of no use after it."""
        if self._opened_by != os.getpid():
            self._mixture = pickle.loads(pickle.dumps(self._mixture))
            self._opened_by = os.getpid()
        return self._mixture.dataset

    def state_at(self, samples_seen: int) -> dict[str, Any]:
        """The state in which all ranks together have seen so many samples: for a program that counts them."""
        return {
            "position": samples_seen,
            "seed": self._mixture.seed,
            "lanes": self._mixture.lanes,
            "fingerprint": self._mixture.fingerprint,
        }

    def state_dict(self) -> dict[str, Any]:
        """How far this process, or this DataLoader worker, has come; what it has handed on counts as seen.
        The same on all ranks once they have had equally many samples.

        Raises UsageError in a process whose DataLoader workers read: it cannot know which of their batches
        were used.
        """
        if not self._shuffle:
            raise UsageError("an evaluation (shuffle=False) has no state: it begins again")
        worker, workers = find_worker()
        if worker is None and self._standing.workers:
            raise UsageError(
                "which batches of its DataLoader workers were used is not known to the data set: count the "
                "samples seen and save state_at(samples_seen), or use torchdata's StatefulDataLoader, or "
                "num_workers=0"
            )
        standing = self._standing.of(worker)
        state = self.state_at(standing.position) | {"stop": standing.stop}
        if worker is not None:
            state |= {"worker": worker, "workers": workers, "ended": self._ended}
            state |= {"origin": standing.origin, "global_batch": self._global_batch}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. The number of processes and of workers and the batch size may be others than
        before, except with the states of DataLoader workers that a StatefulDataLoader keeps.

        Raises UsageError for a state of another data set, seed or number of lanes.
        """
        self._check_same_order(state)
        position = state["position"]
        if "worker" in state:
            self._load_worker(state)
        elif "stop" in state:
            stop = position + self._whole_batches(state["stop"] - position)
            self._standing.move(Standing(position, position, stop))
        else:
            self._standing.move(self._iteration_from(position))

    def _load_worker(self, state: dict[str, Any]) -> None:
        here = (*find_worker(), self._global_batch)
        there = (state["worker"], state["workers"], state["global_batch"])
        if here != there:
            raise UsageError(
                f"this is the state of DataLoader worker {there[0]} of {there[1]} with a global batch of "
                f"{there[2]}: load it with as many workers and the same batch, or load state_at(samples_seen)"
            )
        standing = Standing(state["origin"], state["position"], state["stop"])
        self._ended = self._ended_before = state["ended"]
        self._placed = not state["ended"]
        self._standing.place(state["worker"], standing)

    def _check_same_order(self, state: dict[str, Any]) -> None:
        here = self.state_at(0)
        for field, what, remedy in (
            ("fingerprint", "data set (fingerprint)", "open the shards that it was saved with"),
            ("seed", "seed", f"give seed={state.get('seed')}"),
            ("lanes", "number of lanes", f"give lanes={state.get('lanes')}"),
        ):
            if state.get(field) != here[field]:
                raise UsageError(
                    f"this state is of another {what}: {state.get(field)}, here {here[field]}; {remedy}"
                )
