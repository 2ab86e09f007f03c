"""Ranks of the same features on one, two and three processes; memory that does not grow with all scores."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn import functional as F

from pipeline.evaluation.examples import choose_queries, find_matches
from pipeline.evaluation.feature_rows import FeatureRows
from pipeline.evaluation.pairing import Pairing
from pipeline.evaluation.ranks import count_ranks
from pipeline.evaluation.tiled_rows import TiledRows
from pipeline.topology import Topology

SAMPLES, TILE, DIMENSIONS = 500, 64, 24
CPU = torch.device("cpu")


def drawn():
    """Features of samples with one to three captions, some in groups, many nearly tied: (image, text, labels,
    counts).
    """
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, SAMPLES)
    labels = rng.integers(0, 400, SAMPLES).astype(np.uint64)
    centres = rng.standard_normal((SAMPLES, DIMENSIONS))
    text = np.repeat(centres, counts, 0) + rng.standard_normal((counts.sum(), DIMENSIONS))
    text[::9] = text[0] + 1e-7 * rng.standard_normal(text[::9].shape)
    image = centres + rng.standard_normal(centres.shape)
    features = (F.normalize(torch.tensor(one, dtype=torch.float32), dim=-1) for one in (image, text))
    return *features, labels, counts


def rank_on(topology: Topology) -> dict[str, np.ndarray]:
    """Everything that comes out of a rank's share of the features."""
    image, text, labels, counts = drawn()
    pairing = Pairing.make(labels, np.arange(SAMPLES, dtype=np.uint64), counts)
    begin, end = (SAMPLES * (topology.rank + more) // topology.world_size for more in (0, 1))
    first = int(counts[:begin].sum())
    texts = text[first : first + int(counts[begin:end].sum())]
    rows = [FeatureRows(DIMENSIONS, memory=2000) for _ in range(2)]
    rows[0].append(image[begin:end])
    rows[1].append(texts)
    images = TiledRows(rows[0], pairing.image_order, topology, CPU, first=begin, tile=TILE)
    captions = TiledRows(rows[1], pairing.text_order, topology, CPU, first=first, tile=TILE)
    ranks = count_ranks(images, captions, pairing, topology)
    found = {"own": ranks.own_score}
    for name in ("image_to_text", "text_to_image", "group_image_to_text", "group_text_to_image"):
        direction = getattr(ranks, name)
        found |= {f"{name}_greater": direction.greater, f"{name}_equal": direction.equal}
    for number, chosen in enumerate(choose_queries(ranks, pairing, 0)):
        matches = find_matches(chosen, images, captions, ranks, pairing)
        found |= {f"scores_{number}": matches.scores, f"places_{number}": matches.places}
    return found


def _one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    np.savez(Path(folder) / f"{rank}.npz", **rank_on(Topology(rank, world)))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_are_the_same_to_the_bit_on_any_number_of_processes(world, tmp_path):
    multiprocessing.spawn(_one_rank, (world, str(tmp_path)), nprocs=world)
    alone = rank_on(Topology())
    assert (alone["image_to_text_equal"] > 0).any(), "ties are part of it"
    for rank in range(world):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert found.keys() == alone.keys()
            for name, values in alone.items():
                assert np.array_equal(found[name], values), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_as_a_cpu_does(rank_features):
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randint(-2, 3, (300, 4), generator=generator).float() for _ in range(2))
    labels = torch.randint(0, 200, (300,), generator=generator).numpy().astype(np.uint64)
    own, _ = rank_features(image, text, labels, tile=64)
    theirs, _ = rank_features(image, text, labels, tile=64, device="cuda")
    for name in ("image_to_text", "text_to_image", "group_image_to_text", "group_text_to_image"):
        assert np.array_equal(getattr(own, name).expected, getattr(theirs, name).expected)


def _peak_of_many_tiles(rank: int, folder: str) -> None:
    """50 tiles a side; writes down how much memory was ever taken above that before them, in bytes."""
    torch.set_num_threads(1)
    tile, dimensions = 512, 16
    samples = 50 * tile
    generator = torch.Generator().manual_seed(0)
    rows = [FeatureRows(dimensions, memory=2**20) for _ in range(2)]
    for _ in range(50):
        for one in rows:
            one.append(F.normalize(torch.randn(tile, dimensions, generator=generator), dim=-1))
    numbers = np.arange(samples, dtype=np.uint64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairing = Pairing.make(numbers, numbers, np.ones(samples, np.int64))
    tiled = [TiledRows(one, pairing.image_order, Topology(), CPU, tile=tile) for one in rows]
    ranks = count_ranks(*tiled, pairing, Topology())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    mean = float(ranks.image_to_text.expected.mean())
    Path(folder, "found").write_text(f"{grown} {mean / samples}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units elsewhere")
def test_fifty_tiles_a_side_take_the_memory_of_a_few(tmp_path):
    multiprocessing.spawn(_peak_of_many_tiles, (str(tmp_path),), nprocs=1)
    grown, mean = map(float, (tmp_path / "found").read_text().split())
    assert mean == pytest.approx(0.5, abs=0.01)
    assert grown < 200 * 2**20, "all scores would be 2.6 GB"
