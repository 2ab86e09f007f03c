"""The report on a loader's stages: whom it blames, and which flag it names."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest

from pipeline.loader import Loader, LoaderStats
from pipeline.stage_report import Snapshot, StageReport
from shards import Mixture, SampleStream, open_dataset
from shards.fetching import FetchStats
from tests.figures import write_figures

CORES = os.cpu_count() or 1
# Ten seconds of a loader with two decoding threads that are never out of work, on cores of their own.
DECODING = StageReport(
    seconds=10,
    process=10,
    idle=5.0 * CORES,
    loader=LoaderStats(samples=5000, decode=18, parse=1, busy=19.5, cpu=19, consumer_wait=1.2),
    fetch=FetchStats(threads=8, blocks=80, bytes=300_000_000, busy=4, waited=0.1, ahead=50_000_000),
    workers=2,
    batches_ready=4,
    cores=16,
)


def changed(**loader: float) -> StageReport:
    return replace(DECODING, loader=replace(DECODING.loader, **loader))


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (changed(consumer_wait=0.3), "training waits 3% on the loader: the loader keeps up"),
        (DECODING, "training waits 12% on the loader: decode-bound, raise --workers (2 now, on 16 cores)"),
        (replace(DECODING, cores=2), "decode-bound, more cores or smaller images"),
        (replace(DECODING, idle=0.2 * CORES), "decode-bound with all cores of the machine busy, more cores"),
        (replace(DECODING, cores=1, process=9.5), "decode-bound with every core of this process busy (1)"),
        (changed(decode=4, text=14), "tokenise-bound, raise --workers"),
        (changed(decode=4, transform=14), "transform-bound, raise --workers"),
        (changed(cpu=9), "bound by the interpreter lock (threads run 46% of their time"),
        (
            replace(
                changed(decode=6, busy=8, consumer_wait=6), fetch=replace(DECODING.fetch, waited=5.5, busy=79)
            ),
            "training waits 60% on the loader: storage-bound, raise --prefetch-bytes",
        ),
        (
            changed(decode=6, busy=8, consumer_wait=6),
            "bound by handing samples on (threads 40% busy), run more processes",
        ),
        (
            replace(changed(decode=6, busy=8, consumer_wait=6), cores=2),
            "bound by handing samples on (threads 40% busy), with a thread for every core (2) already",
        ),
        (
            replace(DECODING, seconds=1.5),
            "training waits 80% on the loader: 1.5 s are too short to tell why",
        ),
    ],
)
def test_the_verdict_names_the_stage_that_others_wait_for_and_a_remedy(report, words):
    assert words in report.verdict("training")


def test_the_table_shows_rate_busy_share_and_queue_of_every_stage():
    table = changed(text=0.4).table()
    rows = {line[:20].strip(): line[20:].split("   ") for line in table.splitlines()}
    assert list(rows) == [
        "fetch", "wait for fetch", "parse and check", "decode and resize", "tokenise", "wait for batches"
    ]  # fmt: skip
    assert "30.0 MB/s" in table
    assert "5% of 8 fetching threads, 80 blocks, 50 MB ahead" in table
    assert "500 samples/s   90% of 2 decoding threads" in table
    assert "12% of the time, 4 under way or ready" in table


class Decoder:
    """An image stage that takes so many seconds for an image."""

    uniforms, size = 0, 8

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, data: memoryview, uniforms: object, out: np.ndarray) -> None:
        time.sleep(self.seconds)


def measure(folder, decoding: float, consuming: float) -> StageReport:
    """The second half of a run with stages of known length."""
    dataset = open_dataset(write_figures(folder, 80))
    stream = SampleStream(dataset, Mixture([dataset], [4]).plan(stop=160))
    with Loader(stream, batch_size=8, images=Decoder(decoding), text=None, workers=2) as loader:
        for number, _ in enumerate(loader):
            time.sleep(consuming)
            if number == 9:
                before = Snapshot.take(loader)
        return StageReport.between(before, Snapshot.take(loader))


def test_a_real_loader_with_a_slow_decoder_is_decode_bound_over_the_last_stretch_alone(tmp_path):
    report = measure(tmp_path, decoding=0.005, consuming=0)
    assert report.waits > 0.7  # of what a busy machine leaves
    assert report.loader.decode > 0.9 * report.loader.busy
    assert 30 < report.loader.samples <= 80  # of 160: those after the first snapshot


def test_a_real_loader_with_a_slow_consumer_keeps_up(tmp_path):
    report = measure(tmp_path, decoding=0, consuming=0.02)
    assert "keeps up" in report.verdict("training")
    assert 0.3 < report.values()["buffers_full"] <= 1  # up to when the last batch was begun


def test_a_wait_under_way_counts_as_far_as_it_has_come(tmp_path):
    dataset = open_dataset(write_figures(tmp_path, 80))
    stream = SampleStream(dataset, Mixture([dataset], [4]).plan())
    with Loader(stream, batch_size=8, images=Decoder(0), text=None, workers=2) as loader:
        batches = iter(loader)
        next(batches)
        time.sleep(0.3)  # all buffers are full soon
        before = Snapshot.take(loader)
        time.sleep(0.3)
        report = StageReport.between(before, Snapshot.take(loader))
        assert 0.9 < report.values()["buffers_full"] < 1.01  # the clock is read a little before the counts
