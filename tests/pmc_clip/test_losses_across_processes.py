"""Losses and accumulated gradients on two and four processes are those of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

from pmc_clip.accumulation import accumulate
from tests import accumulation_cases as accumulation
from tests import loss_cases as losses

PARTS_OF_RANK = {0: (3, 1, 2), 1: (2, 4)}  # a rank may cut its batch as it likes


def _one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    local = losses.BATCH // world
    found = {
        name: losses.loss_and_gradients(loss, slice(rank * local, (rank + 1) * local))
        for name, (loss, _) in losses.CASES.items()
    }
    for values in found.values():
        _average_over_ranks(values)
    alone = losses.loss_and_gradients(
        lambda *given: losses.contrastive(*given, gather=False), slice(rank * local, (rank + 1) * local)
    )
    accumulated = _accumulated(rank) if world == len(PARTS_OF_RANK) else {}
    if rank == 0:
        torch.save({"losses": found, "alone": alone, "accumulated": accumulated}, Path(folder) / "found.pt")
    dist.destroy_process_group()


def _average_over_ranks(values: dict[str, torch.Tensor]) -> None:
    """In place, as DistributedDataParallel does with gradients."""
    for value in values.values():
        dist.all_reduce(value)
        value /= dist.get_world_size()


def _accumulated(rank: int) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """By kind of loss: what the second of two accumulated steps under DDP leaves, and the batch in one graph.

    The parts of the ranks differ, dropout is on, and rank 0's last part has no labelled token.
    """
    pairs = {}
    for kind, bias in (("contrastive", False), ("siglip", True)):
        model = accumulation.small_model(bias=bias)
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
        for step in range(2):
            parts = accumulation.parts_of(PARTS_OF_RANK[rank], seed=10 * step + rank, unlabelled=[2])
            torch.manual_seed(rank)
            found = accumulate(parallel, parts, accumulation.match_loss, accumulation.WEIGHTS)._asdict()
            found = {
                **found,
                **{name: value.clone() for name, value in accumulation.take_gradients(model).items()},
            }
        torch.manual_seed(rank)
        expected = accumulation.in_one_graph(model, parts)._asdict() | accumulation.take_gradients(model)
        # The gradients of DDP are averaged already.
        _average_over_ranks({name: found[name] for name in ("total", "match", "mlm")})
        _average_over_ranks(expected)
        pairs[kind] = (found, expected)
    return pairs


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict[str, Any]]:
    """By number of processes, what rank 0 found."""
    # All processes come from one that has imported already what takes longer to import than the tests to run;
    # torch imports its compiler for the first checkpoint, and for DDP.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, "torch._dynamo"])
    results = {}
    for world in (2, 4):
        folder = tmp_path_factory.mktemp(f"world{world}")
        multiprocessing.start_processes(
            _one_rank, args=(world, str(folder)), nprocs=world, start_method="forkserver"
        )
        results[world] = torch.load(folder / "found.pt", weights_only=True)
    return results


@pytest.mark.parametrize("world", [2, 4])
def test_losses_and_gradients_are_those_of_one_process(found, world):
    for case, (_, in_full) in losses.CASES.items():
        expected = losses.loss_and_gradients(in_full, slice(None))
        assert found[world]["losses"][case].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[world]["losses"][case][name],
                value,
                rtol=1e-5,
                atol=1e-6,
                msg=lambda message, case=case, name=name: f"{case}: {name}: {message}",
            )


def test_without_gathering_a_rank_compares_its_own_pairs(found):
    expected = losses.loss_and_gradients(losses.contrastive_in_full, slice(0, losses.BATCH // 2))
    for name, value in expected.items():
        torch.testing.assert_close(found[2]["alone"][name], value, rtol=1e-5, atol=1e-6)


def test_accumulated_gradients_are_those_of_the_batch_in_one_graph(found):
    assert found[2]["accumulated"].keys() == {"contrastive", "siglip"}
    for kind, (accumulated, expected) in found[2]["accumulated"].items():
        assert accumulated.keys() == expected.keys()
        assert "logit_scale" in expected
        for name, value in expected.items():
            torch.testing.assert_close(
                accumulated[name],
                value,
                rtol=1e-5,
                atol=1e-5,
                msg=lambda message, kind=kind, name=name: f"{kind}: {name}: {message}",
            )
