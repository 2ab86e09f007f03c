"""How a training run ends when it is asked to: at the end of a step, on all processes at the same one.

SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) all ask. The run saves and ends with exit code 75, which says: the same
command with `--resume auto` goes on. A second signal ends the process at once.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from pipeline.run_log import say
from pipeline.topology import Topology
from shards.storage import write_atomically

SAVED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
MARKER = "interrupted"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Ctrl-C reaches a launcher and its processes, and the launcher passes it on: that is one request.
_ONE_REQUEST_SECONDS = 1.0
_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)
_START_SECONDS = 5.0  # given to a process that is starting to leave what it is doing

Item = TypeVar("Item")


class Interrupted(Exception):
    """All processes have agreed to end, and what was being done is given up."""


class Interruption:
    """Knows whether the run was asked to end: `with Interruption(topology, folder) as interruption:`.

    Until `begin_steps` there is nothing to save, and a signal ends the process with exit code 75 as soon as
    it can leave what it is doing. Signals are noticed by a thread of its own too, so that a second one counts
    even where the main thread waits for another process.

    folder: the run's, on this machine; None until it is known. A file `interrupted` in it tells a launch
    script that the run ended with exit code 75: torchrun has only 1 for whatever goes wrong. It is there
    until the next start.
    """

    def __init__(self, topology: Topology, folder: Path | None) -> None:
        self.folder, self._topology = folder, topology
        self._asked = self._agreed = False
        self._to_start_again = False
        self._starting = True
        self._group: Any = None  # of all processes, beside the one that trains
        self._under_way: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> "Interruption":
        self._listener, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        if _launcher() is not None:
            _end_with_torchrun()
        return self

    def __exit__(self, *exception: object) -> None:
        self._under_way = self._group = None
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        for number, handler in self._before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)

    def begin_steps(self) -> None:
        """From now on a signal waits for the end of a step. Every process must call it."""
        if self._topology.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        self._starting = False

    def end_steps(self) -> None:
        """Let go of the processes' group, which must be gone before the interpreter ends."""
        self._read_answer()
        self._group = None

    def agreed(self) -> bool:
        """Whether all processes end here. Every process must call it as often as the others, and gets the
        same answers.

        The answer is that of the question asked at the call before, so that nobody waits for it.
        """
        if self._group is None:
            return self._asked
        self._read_answer()
        if not self._agreed:
            flag = torch.tensor(int(self._asked))
            self._under_way = dist.all_reduce(flag, dist.ReduceOp.MAX, self._group, async_op=True), flag
        return self._agreed

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, as long as this process is not asked to end; after them Interrupted is raised where any
        process was. Each may have another number of them, but every process must come to the end.
        """
        for item in items:
            yield item
            if self._asked:
                break
        self.agreed()
        self._read_answer()
        if self._agreed or (self._group is None and self._asked):
            raise Interrupted

    def _read_answer(self) -> None:
        if self._under_way:
            work, flag = self._under_way
            work.wait()
            self._under_way, self._agreed = None, bool(flag)

    def end(self, saved: str) -> NoReturn:
        """End the process with exit code 75. saved: what the run goes on from, in words."""
        # Launchers send more signals when the first process has ended; what is left to do is to exit.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self._topology.is_main:
            say(f"interrupted: {saved}; the same command with --resume auto goes on from there")
            self._leave_marker()
        sys.exit(SAVED_EXIT_CODE)

    def asked_before(self) -> bool:
        """Whether this process was only started because torchrun takes exit code 75 for a failure. What the
        last interruption left is removed. For the first process, once a start.
        """
        if self.folder is None:
            return False
        marker = self.folder / MARKER
        try:
            launcher = json.loads(marker.read_bytes())["launcher"]
        except (OSError, ValueError, LookupError, TypeError):
            launcher = None
        marker.unlink(missing_ok=True)
        return launcher is not None and launcher == _launcher()

    def _leave_marker(self) -> None:
        if self.folder is not None and not self._to_start_again:
            write_atomically(self.folder / MARKER, json.dumps({"launcher": _launcher()}).encode())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self._asked = not self._asked, True
        if first and self._starting:
            self._notice_restart(number)
            self.end("nothing new to save")

    def _notice_restart(self, number: int) -> None:
        """SIGTERM during a start under torchrun comes from torchrun, which ends all processes to start them
        again when one is lost: that asks nobody to end the run.
        """
        self._to_start_again = number == signal.SIGTERM and _launcher() is not None

    def _watch(self) -> None:
        first = None
        while data := self._listener.recv(1):
            number = data[0]
            if number not in _SIGNALS:
                continue
            now = time.monotonic()
            if first is None:
                first, self._asked = now, self._asked or not self._starting
                if self._starting:
                    self._notice_restart(number)
                    threading.Timer(_START_SECONDS, self._end_start).start()
                else:
                    name = signal.Signals(number).name
                    say(
                        f"{name}: finishing the step, then saving (once more: ending at once)",
                        main=self._topology.is_main,
                    )
            elif now - first > _ONE_REQUEST_SECONDS:
                os._exit(128 + number)
        self._listener.close()

    def _end_start(self) -> None:
        if self._topology.is_main:
            self._leave_marker()
        os._exit(SAVED_EXIT_CODE)


def _end_with_torchrun() -> None:
    """Let the system send SIGTERM when torchrun is killed: else nobody would end its processes, and whoever
    starts the run again would have it twice.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM)


def _launcher() -> str | None:
    """Which torchrun started this process, if one did; its restarts of the process are by the same."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return run and f"{run} {socket.gethostname()} {os.getppid()}"
