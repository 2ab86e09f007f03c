"""The clock of waits: those that ended and the one under way."""

import time

from shards.wait_clock import WaitClock


def test_waits_add_up_and_one_under_way_counts_as_far_as_it_has_come():
    clock = WaitClock()
    assert clock.seconds == 0
    with clock.running():
        time.sleep(0.02)
        assert clock.seconds >= 0.02
    ended = clock.seconds
    time.sleep(0.02)
    assert clock.seconds == ended
    with clock.running():
        assert clock.seconds >= ended
