"""Processes that are started again by one launcher: they never meet those of an earlier start."""

import threading

import torch.distributed as dist

from pipeline.meeting import store_of_this_start
from pipeline.topology import Topology


def meet(store: dist.Store, order: list[int]) -> list[dist.Store]:
    """The store that each of three processes gets, which come in an order."""
    found: dict[int, dist.Store] = {}

    def come(rank: int) -> None:
        client = dist.TCPStore("127.0.0.1", store.port, is_master=False)
        found[rank] = store_of_this_start(client, Topology(rank, 3, rank, 3), 30)

    threads = []
    for rank in order:
        threads.append(threading.Thread(target=come, args=(rank,)))
        threads[-1].start()
        threads[-1].join(0.1)
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(3)]


def test_every_start_has_keys_of_its_own():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for start, order in enumerate(([0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1])):
        stores = meet(store, order)
        assert not any(one.check(["address"]) for one in stores)
        stores[1].set("address", str(start))
        assert [one.get("address") for one in stores] == [str(start).encode()] * 3


def test_a_start_that_was_killed_halfway_is_in_nobodys_way():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("greeting/1", "of a process that is gone")
    stores = meet(store, [0, 2, 1])
    stores[0].set("address", "new")
    assert stores[1].get("address") == stores[2].get("address") == b"new"
