"""What a process says when it finds that another one of its job is gone, and that it ends then."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from pipeline.topology import Topology
from shards import DataError

_EXIT_SECONDS = 30.0  # given to an exit that may wait for what a lost process will never answer
# gloo throws plain RuntimeErrors, and one of its messages does not even name it.
_OF_GLOO = ("gloo/", "gloo::", "caused pair closure")
_SOURCE = re.compile(r"\[[^\]]*\.(?:cc|cpp|h):\d+\] ")  # where in its source gloo says so


@contextmanager
def naming_lost_processes(topology: Topology) -> Iterator[None]:
    """Within, trouble of the process group is a DataError that says what it means; the process ends in a
    bounded time then, whatever still waits.
    """
    try:
        yield
    except RuntimeError as error:
        if topology.world_size == 1 or not _is_of_group(error):
            raise
        timer = threading.Timer(_EXIT_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()
        said = _SOURCE.sub("", str(error).strip()).splitlines()[0].partition(". ")[0]
        late = re.search("timed out|timeout", said.lower()) and "refused" not in said
        what = "no answer from another process within --timeout" if late else "another process is gone"
        raise DataError(
            f"{what} ({said}): look for the first error among the messages of the others, then start "
            "all of them again with --resume auto"
        ) from error


def _is_of_group(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(mark in str(error) for mark in _OF_GLOO)
