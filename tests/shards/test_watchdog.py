"""Waiting: nothing is said while things go well, then it is, and past the deadline the wait ends."""

import queue
import threading
import time

import pytest

from shards import DataError
from shards.watchdog import Patience, Watchdog

SHORT = Patience(warn_after=0.04, give_up_after=0.2)


def test_what_comes_in_time_is_handed_on_without_a_word(capfd):
    source: queue.SimpleQueue[str] = queue.SimpleQueue()
    source.put("item")
    assert Watchdog(SHORT).get(source, lambda: "nothing") == "item"
    assert capfd.readouterr() == ("", "")


def test_a_long_wait_is_told_on_standard_error_as_it_stands_now_and_goes_on(capfd):
    came, tries = threading.Event(), iter(range(1, 100))
    threading.Timer(0.12, came.set).start()
    Watchdog(SHORT).wait(came.wait, lambda: f"fetch of s3://b/x.tar, try {next(tries)}")
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "waiting for 0 s on fetch of s3://b/x.tar, try 1"
    assert 1 < len(told) <= 3
    assert told[1].endswith("try 2")


def test_past_the_deadline_the_wait_ends_with_the_same_words():
    begin = time.monotonic()
    with pytest.raises(
        DataError, match=r"^gave up after waiting for 0 s on fetch of s3://b/x\.tar; .*resume"
    ):
        Watchdog(SHORT).get(queue.SimpleQueue(), lambda: "fetch of s3://b/x.tar")
    assert 0.2 <= time.monotonic() - begin < 1


def test_what_another_watchdog_has_an_eye_on_is_left_to_it(capfd):
    came = threading.Event()
    threading.Timer(0.4, came.set).start()
    Watchdog(SHORT).wait(came.wait, lambda: "")
    assert capfd.readouterr().err == ""
