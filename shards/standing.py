"""How far each reader of a stream has come, in memory that it shares with the DataLoader workers it starts.

A DataLoader copies its data set into every worker, and without `persistent_workers` it does so again for
every iteration. What a worker has read would be forgotten with the copy; here it is kept where the next one
finds it.
"""

from dataclasses import astuple, dataclass
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from typing import Any

from shards.errors import UsageError

_MOST_WORKERS = 1024
# Places in the array; from the last on, so many numbers for each reader: its standing, and how many
# iterations it has begun.
_GENERATION, _WORKERS, _READERS = range(3)
_NUMBERS = 4
_UNTOUCHED = -1
_REMEDY = "say where to go on, with load_state_dict(state_at(samples_seen)), or make a new stream with start="
_OVER = (
    "this iteration is over, since another one of the same data set began (or a state was loaded): finish one"
    " before the next, or make a data set for each"
)


@dataclass(frozen=True)
class Standing:
    """Where a reader is in an iteration, in positions: what batches are counted from, what comes next, and
    where the iteration ends.
    """

    origin: int
    position: int
    stop: int


@dataclass(frozen=True)
class Reading:
    """One iteration of one reader: what its standing is noted by while no other has taken its place."""

    worker: int | None
    workers: int
    generation: int
    iteration: int


class SharedStanding:
    """The standing of the process that made it, and of its DataLoader workers.

    Each reader writes its own alone, so none needs a lock. A worker that has not read yet stands where the
    process does that made this.
    """

    _known_generation: int

    def __init__(self, standing: Standing) -> None:
        self._array = RawArray("q", _READERS + _NUMBERS * (1 + _MOST_WORKERS))
        self.move(standing)

    def __getstate__(self) -> dict[str, Any]:
        shared = get_spawning_popen()  # on its way to a process that shares this memory
        return {**self.__dict__, "_array": self._array if shared else list(self._array)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        array = state["_array"]
        self._array = RawArray("q", array) if isinstance(array, list) else array
        self._known_generation = state["_known_generation"]

    @property
    def workers(self) -> int:
        """How many DataLoader workers read since the last `move`; 0: none."""
        return self._array[_WORKERS]

    def move(self, standing: Standing) -> None:
        """Let every reader go on from here; iterations still under way are over."""
        self._array[_GENERATION] += 1
        self._known_generation = self._array[_GENERATION]  # in this process and those made after
        self._array[_WORKERS] = 0
        self._array[_READERS:] = [*astuple(standing), 0] + _MOST_WORKERS * [*3 * [_UNTOUCHED], 0]

    def of(self, worker: int | None) -> Standing:
        """The standing of a worker; None: of the process itself."""
        place = _place(worker)
        if self._array[place] == _UNTOUCHED:
            _, position, stop = self._array[_READERS : _READERS + 3]
            return Standing(position, position, stop)
        return Standing(*self._array[place : place + 3])

    def look(self) -> None:
        """Learn of every `move` until now. One that is made between here and `begin` ends that iteration."""
        self._known_generation = self._array[_GENERATION]

    def place(self, worker: int, standing: Standing) -> None:
        """Let one worker go on from here."""
        place = _place(worker)
        self._array[place : place + 3] = astuple(standing)

    def begin(self, worker: int | None, workers: int, *, new: bool, placed: bool) -> Reading:
        """Begin an iteration as one of so many workers (None of 0: as the process itself); an older one of
        the same reader is over.

        new: whether it is the first in this process. placed: whether `place` said where the worker goes on.
        Raises UsageError where workers have read ahead, and how much of that was used is not known here.
        """
        if self._known_generation != self._array[_GENERATION]:
            raise UsageError(_OVER)
        self._join(workers)
        if worker is not None and not placed:
            self._check_left(worker, new)
        self._array[_place(worker) + 3] += 1
        return self._reading(worker)

    def _join(self, workers: int) -> None:
        if not self.workers:
            self._array[_WORKERS] = workers
        elif self.workers != workers:
            others = f"to the {workers} that read now" if workers else "here"
            raise UsageError(
                f"{self.workers} DataLoader workers have read from this stream, and how many of their "
                f"batches were used is not known {others}: {_REMEDY}"
            )

    def _check_left(self, worker: int, new: bool) -> None:
        """UsageError where the last iteration was left before its end.

        Where it was not, all workers had ended it before any begins the next, so none is behind. A pipeline
        that repeats itself inside a worker does not wait for the others; but it stays in one process.
        """
        own = self.of(worker)
        behind = new and any(self.of(other).origin < own.origin for other in range(self.workers))
        if own.position != own.origin or behind:
            raise UsageError(
                "the last iteration was left early, while DataLoader workers read ahead, and how many of "
                f"their batches were used is not known: {_REMEDY}"
            )

    def note(self, reading: Reading, standing: Standing) -> None:
        """Keep how far a reader has come; UsageError where its iteration is over."""
        if reading != self._reading(reading.worker):
            raise UsageError(_OVER)
        place = _place(reading.worker)
        self._array[place : place + 3] = astuple(standing)

    def _reading(self, worker: int | None) -> Reading:
        """The latest iteration of a reader."""
        return Reading(worker, self.workers, self._array[_GENERATION], self._array[_place(worker) + 3])


def _place(worker: int | None) -> int:
    return _READERS if worker is None else _READERS + _NUMBERS * (1 + worker)
