"""The fetching threads: what was given up before it began is never read."""

import threading

from shards.fetching import FetchStats, FetchThreads, Purpose


def test_a_queued_fetch_that_was_given_up_is_skipped():
    threads, release, read = FetchThreads(FetchStats(threads=1)), threading.Event(), []

    def reads(name: str):
        def read_it() -> memoryview:
            if name == "first":
                release.wait(10)
            read.append(name)
            return memoryview(name.encode())

        return threads.submit(Purpose.SAMPLE, name, read_it)

    _, second, third = reads("first"), reads("second"), reads("third")
    second.give_up()
    release.set()
    assert third.result() == b"third"
    threads.close()
    assert read == ["first", "third"]
    assert second.data is None
