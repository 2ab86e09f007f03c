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
# Places in the array; from the last on, three numbers for each reader.
_GENERATION, _WORKERS, _READERS = range(3)
_UNTOUCHED = -1


@dataclass(frozen=True)
class Standing:
    """Where a reader is in an iteration, in positions: what batches are counted from, what comes next, and
    where the iteration ends.
    """

    origin: int
    position: int
    stop: int


class SharedStanding:
    """The standing of the process that made it, and of its DataLoader workers.

    Each reader writes its own alone, so none needs a lock. A worker that has not read yet stands where the
    process does that made this.
    """

    def __init__(self, standing: Standing) -> None:
        self._array = RawArray("q", _READERS + 3 * (1 + _MOST_WORKERS))
        self.move(standing)

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen():  # on its way to a process that shares this memory
            return {"_array": self._array}
        return {"_array": list(self._array)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        array = state["_array"]
        self._array = RawArray("q", array) if isinstance(array, list) else array

    @property
    def workers(self) -> int:
        """How many DataLoader workers read since the last `move`; 0: none."""
        return self._array[_WORKERS]

    @property
    def generation(self) -> int:
        """The number of calls of `move`, which readers that began before one show to `note`."""
        return self._array[_GENERATION]

    def move(self, standing: Standing) -> None:
        """Let every reader go on from here; those still at work are not listened to any more."""
        self._array[_GENERATION] += 1
        self._array[_WORKERS] = 0
        self._array[_READERS:] = [*astuple(standing)] + 3 * _MOST_WORKERS * [_UNTOUCHED]

    def of(self, worker: int | None) -> Standing:
        """The standing of a worker; None: of the process itself."""
        place = _place(worker)
        if self._array[place] == _UNTOUCHED:
            _, position, stop = self._array[_READERS : _READERS + 3]
            return Standing(position, position, stop)
        return Standing(*self._array[place : place + 3])

    def join(self, workers: int) -> None:
        """Read as one of so many workers (0: as the process itself) from now on.

        Raises UsageError where others than these have read, and how far is not known here.
        """
        if not self.workers:
            self._array[_WORKERS] = workers
        elif self.workers != workers:
            others = f"to the {workers} that read now" if workers else "here"
            raise UsageError(
                f"{self.workers} DataLoader workers have read from this stream, and how many of their "
                f"batches were used is not known {others}: say where to go on, with "
                "load_state_dict(state_at(samples_seen)), or make a new stream with start="
            )

    def note(self, worker: int | None, standing: Standing, generation: int) -> None:
        """Keep how far a reader has come that began in this generation."""
        if generation == self.generation:
            place = _place(worker)
            self._array[place : place + 3] = astuple(standing)


def _place(worker: int | None) -> int:
    return _READERS if worker is None else _READERS + 3 * (1 + worker)
