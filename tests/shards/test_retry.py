"""Trying again: how often, how long, and how it is seen and stopped from other threads."""

import threading
import time

import pytest

from shards.retry import TRIES, Attempts, StillFailing, Stopped, recorded, retry


@pytest.fixture
def quick(monkeypatch):
    """The same waits, a hundred times as short."""
    monkeypatch.setattr("shards.retry.DELAYS", (0.001, 0.005, 0.025, 0.1, 0.3))


class Failing:
    """Work that meets a broken connection some times before it is done."""

    def __init__(self, failures: float) -> None:
        self.left = failures
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        self.left -= 1
        if self.left >= 0:
            raise ConnectionResetError(f"reset {self.tries}")
        return "done"


def test_what_heals_in_time_is_done_and_its_failures_are_counted(quick):
    attempts = Attempts()
    with recorded(attempts):
        assert retry(Failing(3)) == "done"
    assert (attempts.tries, attempts.failures, attempts.trouble) == (4, 3, "reset 3")


def test_an_outage_ends_after_the_last_try(quick):
    work = Failing(float("inf"))
    with pytest.raises(StillFailing, match=f"^reset {TRIES}$") as raised:
        retry(work)
    assert work.tries == raised.value.tries == TRIES


def test_with_patience_tries_go_on_up_to_the_deadline(quick):
    work, begin = Failing(float("inf")), time.monotonic()
    with recorded(Attempts(patience=1.2)), pytest.raises(StillFailing) as raised:
        retry(work)
    assert work.tries == raised.value.tries > TRIES
    assert 0.7 < time.monotonic() - begin < 1.3
    with recorded(Attempts(patience=30)):
        assert retry(Failing(TRIES + 1)) == "done"


def test_a_wait_for_the_next_try_can_be_stopped():
    attempts = Attempts(patience=100)
    threading.Timer(0.2, attempts.stop.set).start()
    begin = time.monotonic()
    with recorded(attempts), pytest.raises(Stopped):
        retry(Failing(float("inf")))
    assert time.monotonic() - begin < 1


def test_what_trying_again_cannot_help_is_raised_at_once():
    def refused() -> None:
        raise PermissionError("no")

    attempts = Attempts(patience=100)
    with recorded(attempts), pytest.raises(PermissionError):
        retry(refused)
    assert attempts.tries == 1
