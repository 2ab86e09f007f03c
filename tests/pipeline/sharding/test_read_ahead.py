"""Reading ahead: several places at once where storage is slow, in order; no threads where it is quick."""

import threading
import time

from pipeline.sharding.read_ahead import read_ahead

SLOW_SECONDS = 0.003


def test_slow_storage_is_read_by_several_threads_and_the_order_kept():
    threads = set()

    def read(place: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(SLOW_SECONDS)
        return 2 * place

    assert list(read_ahead(read, range(100))) == [2 * place for place in range(100)]
    assert len(threads) > 2


def test_a_few_slow_reads_do_not_make_quick_storage_a_slow_one():
    threads = set()

    def read(place: int) -> int:
        threads.add(threading.get_ident())
        if place % 10 == 9:
            time.sleep(SLOW_SECONDS)
        return place

    assert list(read_ahead(read, range(100))) == list(range(100))
    assert threads == {threading.get_ident()}
