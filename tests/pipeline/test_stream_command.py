"""`pipeline.stream` as a user runs it: what it prints and writes, what it refuses, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.fault_proxy import HANG, faulty_s3
from tests.figures import write_figures

SAMPLES = 90


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> str:
    return write_figures(tmp_path_factory.mktemp("figures"), SAMPLES)


def test_a_whole_epoch_is_reported_stage_by_stage_with_a_verdict(run, figures):
    done = run("stream", "--data", figures, "--batch-size", 30, "--image-size", 32)
    assert done.returncode == 0, done.stderr
    assert re.match(r"90 samples in \d+\.\d\d s: [\d,]+ samples/s, .* first batch after \d", done.stdout)
    for stage in ("fetch", "parse and check", "decode and resize", "wait for batches"):
        assert re.search(rf"^  {stage} .*%", done.stdout, re.MULTILINE)
    assert re.search(r"^the consumer waits \d+% on the loader: \w", done.stdout, re.MULTILINE)
    assert "90 samples in 1 shard" in done.stderr


def test_of_a_mixture_the_samples_of_each_data_set_are_counted(run, figures, tmp_path):
    other = write_figures(tmp_path / "other", 50)
    flags = ["--batch-size", 16, "--batches", 5, "--lanes", 4, "--image-size", 32]
    done = run("stream", "--data", f"{figures}=0.75", f"{other}=0.25", *flags)
    assert f"{figures}: 60 of the 80 samples of all processes, 0.67 of its epochs" in done.stdout
    assert f"{other}: 20 of the 80 samples of all processes, 0.40 of its epochs" in done.stdout


def test_a_transform_by_name_and_columns_reach_the_loader(run, figures, tmp_path):
    (tmp_path / "darken.py").write_text("def half(example):\n    example.image //= 2\n")
    checksums = []
    for flags in ([], ["--transform", "darken:half", "--columns", "licence", "note"]):
        done = run(
            "stream", "--data", figures, "--keys", "k.tsv", "--checksums", "--image-size", 32,
            "--batch-size", 30, *flags,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        checksums.append([line.split("\t") for line in (tmp_path / "k.tsv").read_text().splitlines()])
    assert [line[:2] for line in checksums[0]] == [line[:2] for line in checksums[1]]
    assert all(plain[2] != changed[2] for plain, changed in zip(*checksums, strict=True))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--columns", "license"], "no column license: none of"),
        (["--transform", "nowhere:f"], "there is no module nowhere"),
        (["--transform", "nowhere"], "write it as module:function"),
        (["--max-bad-samples", "2x"], "--max-bad-samples 2x: write a share"),
        (["--crop-scale", "0"], "--crop-scale 0.0: it must lie above 0"),
        (["--cache-size", "much"], "--cache-size much: write a number of bytes"),
        (["--checksums"], "--checksums adds a column to --keys"),
        (["--keys", "s3://bucket/keys.tsv"], "--keys s3://bucket/keys.tsv: only a path on this machine"),
        (["--keys", "."], "--keys .: it cannot be written (Is a directory)"),
        (["--keys", "/dev/null/keys.tsv"], "--keys /dev/null/keys.tsv: it cannot be written ("),
    ],
)
def test_a_wrong_request_is_refused_in_one_message(run, figures, flags, words):
    done = run("stream", "--data", figures, "--batch-size", 30, "--image-size", 32, *flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_samples_are_named_counted_and_limited_as_the_flags_say(run, tmp_path):
    folder = write_figures(tmp_path / "d", SAMPLES, broken=range(0, 12))
    flags = ["--data", folder, "--batch-size", 30, "--image-size", 32]
    done = run("stream", *flags, "--max-bad-samples", "20%")
    assert done.returncode == 0
    assert len(re.findall(r"^substituted: .*d-000000\.tar: image of sample", done.stderr, re.MULTILINE)) == 12
    done = run("stream", *flags)
    assert done.returncode == 1
    assert "more than --max-bad-samples 1% allows" in done.stderr
    done = run("stream", *flags, "--on-bad-sample", "fail")
    assert done.returncode == 1
    assert "cannot be decoded (" in done.stderr
    assert "--on-bad-sample substitute lets another" in done.stderr


@pytest.mark.slow
def test_of_several_processes_the_one_that_fails_says_why_and_the_others_no_more(run, tmp_path):
    folder = write_figures(tmp_path / "d", SAMPLES, broken=[5])
    flags = ["--data", folder, "--batch-size", 10, "--image-size", 32, "--on-bad-sample", "fail"]
    done = run("stream", *flags, "--keys", "k.tsv", processes=2)
    assert done.returncode != 0
    assert len(re.findall(r"^rank \d: error: .* cannot be decoded", done.stderr, re.MULTILINE)) == 1
    assert "gather_object" not in done.stderr  # of no traceback


SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


def ends_within_two_seconds(run_job: Callable[[], "subprocess.Popen[str]"], number: int, code: int) -> bool:
    """Whether a signal ends a job in time, in one of three tries: others on the machine can make it slower,
    never faster.
    """

    def seconds_to_end() -> float:
        job = run_job()
        begin = time.monotonic()
        job.send_signal(number)
        _, printed = job.communicate(timeout=30)
        assert (job.returncode, "Traceback" in printed) == (code, False), printed
        return time.monotonic() - begin

    return any(seconds_to_end() < 2 for _ in range(3))


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@SIGNALS
def test_an_interrupt_ends_the_command_within_two_seconds(start, figures, tmp_path, number, code):
    flags = ["--batches", 10**6, "--batch-size", 30, "--image-size", 32, "--keys", "k.tsv", "--checksums"]
    keys = tmp_path / "k.tsv"

    def reading() -> "subprocess.Popen[str]":
        keys.unlink(missing_ok=True)
        job = start("stream", "--data", figures, *flags)
        wait_until(lambda: keys.exists() and keys.stat().st_size)
        return job

    assert ends_within_two_seconds(reading, number, code)


@SIGNALS
def test_an_interrupt_ends_the_command_while_storage_says_nothing(start, s3, tmp_path, number, code):
    address = write_figures(f"{s3}/stalled-{number}", SAMPLES)
    with faulty_s3(lambda count, line: HANG if ".tar" in line else None) as proxy:

        def stalled() -> "subprocess.Popen[str]":
            met = len(proxy.met)
            job = start("stream", "--data", address, "--batch-size", 30)
            wait_until(lambda: any(fault for _, fault in proxy.met[met:]))
            return job

        assert ends_within_two_seconds(stalled, number, code)


@pytest.mark.slow
def test_memory_stays_flat_over_twenty_epochs(tmp_path):
    folder = write_figures(tmp_path / "d", 400, side=120, broken=range(0, 400, 150))
    script = f"""
import os
from pipeline.data import LoaderOptions, training_loader
from pipeline.decode import TrainImages
from pipeline.text import TextStage
from pipeline.topology import Topology
from pmc_clip import get_tokenizer
from shards import Mixture, open_dataset

dataset = open_dataset({folder!r})
with training_loader(
    Mixture([dataset], [12]), Topology(), global_batch=40, start=0, stop=20 * 400, images=TrainImages(64),
    text=TextStage(get_tokenizer("tiny"), mask_ratio=0.5), options=LoaderOptions(2, 10**6, columns=("row",)),
) as loader:
    for number, _ in enumerate(loader, 1):
        if number % 10 == 0:
            pages = int(open("/proc/self/statm").read().split()[1])
            print(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    mebibytes = [float(line) for line in done.stdout.split()]
    assert len(mebibytes) == 20
    assert max(mebibytes[10:]) - max(mebibytes[2:10]) < 4, mebibytes
