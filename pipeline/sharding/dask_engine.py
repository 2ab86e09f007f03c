"""Work on a stream of tasks on a Dask cluster that is there already: what `run_in_processes` does on one
machine, on many.

Start its workers with one thread each (`dask worker tcp://scheduler:8786 --nworkers 8 --nthreads 1`), on
machines that have this project installed and see the images and the output folder. The scheduler needs Dask
alone.
"""

import importlib.metadata
import importlib.util
import logging
import pickle
import re
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from shards import DataError, UsageError

if TYPE_CHECKING:
    from distributed import Client, Future

Task = TypeVar("Task")
Result = TypeVar("Result")

PROJECT = "pmc-clip-stream"
KEPT = "what was finished is kept: the same command goes on with the rest"
SECONDS_TO_CONNECT = 10.0
SECONDS_BETWEEN_LOOKS = 1.0


def run_on_dask(
    address: str,
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    stopping: Callable[[], bool] = lambda: False,
    patience: float = 300.0,
) -> Generator[Result, None, None]:
    """The results of `work` on every task, as they come; tasks are drawn as workers become free.

    `work` must be picklable and all or nothing: a task whose worker died is done again on another. Workers
    may join and leave; the job ends where there is none for `patience` seconds. Once `stopping()` is true no
    more tasks are drawn, and those under way are finished. An error of one task ends the job and cancels the
    others. Raises UsageError for a cluster that cannot be used, DataError for one that was lost.
    """
    with _connection(address) as client:
        cluster, run_pickled, project = _Cluster(client, address, patience), _runner(), _project_version()
        source, drawing = iter(tasks), True
        under_way: set[Future] = set()
        try:
            while drawing or under_way:
                room = max(0, 2 * cluster.threads() - len(under_way))
                drawing = drawing and not stopping()
                drawn = list(islice(source, room)) if drawing else []
                drawing = drawing and len(drawn) == room
                for task in drawn:
                    under_way.add(client.submit(run_pickled, pickle.dumps((work, task)), project, pure=False))
                for future in _ended(under_way):
                    result = _result(future, address)
                    under_way.remove(future)
                    yield result
        finally:
            client.cancel(list(under_way))


class _Cluster:
    """The workers of a cluster, and how long there have been none."""

    def __init__(self, client: "Client", address: str, patience: float) -> None:
        self._client, self._address, self._patience = client, address, patience
        self._without_since: float | None = None

    def threads(self) -> int:
        """Threads of all workers now; DataError where there were none for too long."""
        threads = sum(self._client.nthreads().values())
        if threads:
            self._without_since = None
        elif self._without_since is None:
            self._without_since = time.monotonic()
            print(f"{self._address} has no workers: waiting for some to join", file=sys.stderr, flush=True)
        elif time.monotonic() - self._without_since > self._patience:
            raise DataError(
                f"{self._address} has had no workers for {self._patience:,.0f} s: start some with "
                f"'dask worker {self._address} --nthreads 1'; {KEPT}"
            )
        return threads


@contextmanager
def _connection(address: str) -> "Iterator[Client]":
    """A client of the cluster; inside, trouble with the cluster itself becomes a DataError."""
    check_scheduler(address)
    from distributed import Client, KilledWorker
    from distributed.comm import CommClosedError

    # What Dask has to say about lost workers and connections is said here, in one message.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with Client(address, timeout=SECONDS_TO_CONNECT) as client:
        _check_versions(client, address)
        try:
            yield client
        except KilledWorker as error:
            raise DataError(
                f"{address}: every worker that took one of the tasks died "
                f"({error.allowed_failures + 1} in all), most often because memory ran out: give each more "
                f"of it, or fewer threads; {KEPT}"
            ) from None
        except MemoryError:
            raise DataError(f"{address}: a worker ran out of memory: give each more; {KEPT}") from None
        except (CancelledError, CommClosedError) as error:
            raise DataError(
                f"{address}: the connection to the scheduler was lost, or it dropped the tasks ({error}): "
                f"see that it runs; {KEPT}"
            ) from None


def check_scheduler(address: str) -> None:
    """Raise UsageError unless Dask is installed and a scheduler listens there: Dask's client waits for others
    for ever.
    """
    if importlib.util.find_spec("distributed") is None:
        raise UsageError(f"--dask {address}: Dask is missing: pip install '{PROJECT}[dask]'")
    found = re.fullmatch(r"(tcp|tls)://(.+):(\d+)", address)
    if not found:
        raise UsageError(f"--dask {address}: the scheduler's address is written as tcp://host:8786")
    try:
        with socket.create_connection((found[2], int(found[3])), SECONDS_TO_CONNECT) as connection:
            # A scheduler greets first; with TLS its greeting waits for ours.
            if found[1] == "tcp" and not connection.recv(1):
                raise ConnectionError("it closed the connection")
    except OSError as error:
        raise UsageError(
            f"--dask {address}: no Dask scheduler answers there ({error}): see that 'dask scheduler' runs, "
            "that this machine reaches it, and that the port is the scheduler's (8786 unless given), not its "
            "dashboard's"
        ) from None


def _check_versions(client: "Client", address: str) -> None:
    """Raise UsageError where the cluster's Python or Dask is another, since functions travel between them."""
    versions: Any = client.get_versions()
    here = _describe_versions(versions["client"])
    for place, found in {"scheduler": versions["scheduler"], **versions["workers"]}.items():
        there = _describe_versions(found)
        if there != here:
            raise UsageError(f"--dask {address}: {place} has {there}, this machine {here}: install the same")


def _describe_versions(found: dict[str, dict[str, str]]) -> str:
    packages = found["packages"]
    python = ".".join(packages["python"].split(".")[:2])  # of 3.11.7.final.0
    return f"Python {python} with Dask {packages['distributed']}"


def _runner() -> Callable[[bytes, str], Any]:
    """What a worker does with a task: an inner function, which travels as code and not as a name that the
    scheduler would have to import. It returns the result, or what keeps the worker from taking the task.
    """

    def run_pickled(pickled: bytes, project: str) -> Any:
        import importlib.metadata
        import pickle

        try:
            there = importlib.metadata.version("pmc-clip-stream")
            work, task = pickle.loads(pickled)
        except (ImportError, AttributeError) as error:
            return {"unfit": f"cannot import what the task needs ({error})"}
        if there != project:
            return {"unfit": f"has pmc-clip-stream {there}, and this machine {project}"}
        return {"result": work(task)}

    return run_pickled


def _ended(under_way: "set[Future]") -> "list[Future]":
    """The tasks that have ended by now, after a short wait for one."""
    from distributed import wait

    if not under_way:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    else:
        try:
            wait(under_way, timeout=SECONDS_BETWEEN_LOOKS, return_when="FIRST_COMPLETED")
        except TimeoutError:
            pass
    return [future for future in under_way if future.status in ("finished", "error")]


def _result(future: "Future", address: str) -> Any:
    """What the task returned; raises what it raised."""
    returned = future.result()
    if "unfit" in returned:
        raise UsageError(
            f"--dask {address}: a worker {returned['unfit']}: install the same {PROJECT} on every machine"
        )
    return returned["result"]


def _project_version() -> str:
    try:
        return importlib.metadata.version(PROJECT)
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(f"--dask: {PROJECT} must be installed, here and where the workers run") from None
