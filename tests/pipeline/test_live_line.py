"""What is seen of a loader at work: on a terminal, in a log file, and of the other processes of a group."""

import contextlib
import fcntl
import os
import re
import struct
import sys
import termios
import threading

import pytest

from pipeline.decode import TrainImages
from pipeline.live_line import LiveLine
from pipeline.loader import Loader
from pipeline.topology import Topology
from pipeline.training.length import RunLength
from pipeline.training.progress import Progress
from shards import Mixture, SampleStream, open_dataset
from tests.figures import write_figures

SAMPLES, BROKEN = 80, (3, 50)


@pytest.fixture
def loader(tmp_path):
    """Ten batches of eight samples, two of which are substituted."""
    dataset = open_dataset(write_figures(tmp_path / "d", SAMPLES, broken=BROKEN))
    stream = SampleStream(dataset, Mixture([dataset], [4]).plan(stop=SAMPLES))
    with Loader(stream, batch_size=8, images=TrainImages(16), text=None, workers=1) as made:
        yield made


def follow(loader: Loader, **options: object) -> None:
    with LiveLine(loader, SAMPLES // 8, **options) as line:
        for _ in loader:
            line.advance()


@contextlib.contextmanager
def terminal(columns: int):
    """Inside, standard error is a terminal; afterwards, the list given holds the one text that it showed."""
    screen, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    pieces: list[bytes] = []
    shown: list[str] = []

    def read() -> None:  # all the time, since a terminal holds no more than a page
        with contextlib.suppress(OSError):
            while piece := os.read(screen, 2**16):
                pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(end, "w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        yield shown
    reader.join()
    os.close(screen)
    shown.append(b"".join(pieces).decode())


def test_on_a_terminal_a_bar_shows_rates_and_bad_samples_stand_above_it(loader, monkeypatch):
    monkeypatch.setattr("pipeline.live_line._SECONDS_BETWEEN_LOOKS", 0.0)
    with terminal(columns=80) as shown:
        follow(loader, talks=True)
    assert re.search(r"100%\|.*\| 10/10 \[.*, [\d,]+ samples/s, the consumer waits \d+%", shown[0])
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown[0])]
    assert len([line for line in lines if line.startswith("substituted: ")]) == len(BROKEN)


def test_in_a_log_file_a_line_comes_now_and_then(loader, monkeypatch, capfd):
    monkeypatch.setattr("pipeline.live_line.SECONDS_BETWEEN_LINES", 0.0)
    follow(loader, talks=True)
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("substituted")]
    assert [line.split(":")[0] for line in lines] == [f"{n} of 10 batches" for n in range(1, 11)]


def test_a_process_that_does_not_talk_names_its_own_bad_samples(loader, capfd):
    follow(loader, talks=False, name="rank 1: ")
    said = capfd.readouterr().err.splitlines()
    assert len(said) == len(BROKEN)
    assert all(re.match(r"rank 1: substituted: .*: image of sample 0000(03|50) ", line) for line in said)


def test_a_run_on_several_processes_names_the_bad_samples_of_each(loader, capfd):
    length = RunLength.plan(epoch=SAMPLES, global_batch=16, full=SAMPLES, most=None)
    with Progress(loader, None, Topology(rank=1, world_size=2), length):
        for _ in loader:
            pass
    said = capfd.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("rank 1: substituted: ")]) == len(BROKEN)
