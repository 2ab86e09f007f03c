"""The loader: the same pixels whatever the threads, nothing lost to a broken image, nothing left behind."""

import io
import os
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import LoaderOptions, evaluation_loader, training_loader
from pipeline.decode import EvalImages, TrainImages
from pipeline.loader import BadSamplePolicy, Loader
from pipeline.text import TextStage
from pipeline.topology import Topology
from pmc_clip import get_tokenizer
from shards import DataError, Folder, Mixture, SampleStream, open_dataset, write_manifest, write_shard
from shards.watchdog import Patience

SIZE, SAMPLES = 32, 90
ALONE = Topology()


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 255, (int(rng.integers(40, 90)), int(rng.integers(40, 90)), 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG" if number % 3 else "JPEG")
    return out.getvalue()


def write(folder, broken: frozenset[int] = frozenset()) -> str:
    samples = (
        (
            f"{n:09d}",
            {"jpg": b"\xff\xd8 broken" if n in broken else picture(n), "txt": f"caption of {n}".encode()},
        )
        for n in range(SAMPLES)
    )
    target = Folder(folder)
    write_manifest(target, [write_shard(target, "d-000000.tar", samples)], {})
    return target.address


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(write(tmp_path / "d"))


def load(
    dataset,
    *,
    topology=ALONE,
    workers=2,
    start=0,
    stop=4 * 24,
    prefetch=10**6,
    batch=24,
    seed=3,
    text=None,
    **options,
):
    return training_loader(
        Mixture([dataset], [12], seed),
        topology,
        global_batch=batch,
        start=start,
        stop=stop,
        images=TrainImages(SIZE),
        text=text,
        options=LoaderOptions(workers, prefetch, **options),
    )


def collect(loader) -> dict[int, tuple[str, bytes]]:
    """Key and pixels at each position."""
    with loader:
        return {
            position: (key, batch.images[i].permute(1, 2, 0).numpy().tobytes())
            for batch in loader
            for i, (position, key) in enumerate(zip(batch.positions.tolist(), batch.keys, strict=True))
        }


def test_keys_and_pixels_do_not_depend_on_threads_processes_reading_ahead_or_start(dataset):
    alone = collect(load(dataset))
    assert sorted(alone) == list(range(96))
    assert collect(load(dataset, workers=5, prefetch=0)) == alone
    for world_size in (2, 3, 4):
        parts = [
            collect(load(dataset, topology=Topology(r, world_size), workers=1)) for r in range(world_size)
        ]
        assert {position: sample for part in parts for position, sample in part.items()} == alone
    late = collect(load(dataset, start=48))
    assert late == {position: alone[position] for position in range(48, 96)}


def test_crops_differ_between_epochs_and_seeds(dataset):
    stream = collect(load(dataset, stop=192))
    pixels: dict[str, set[bytes]] = {}
    for key, data in stream.values():
        pixels.setdefault(key, set()).add(data)
    assert sum(len(seen) > 1 for seen in pixels.values()) > 45
    other = collect(load(dataset, seed=4))
    assert sum(other[position] == stream[position] for position in other) < 10


def test_masking_depends_on_sample_and_epoch_alone(dataset):
    text = TextStage(get_tokenizer("tiny"), seed=3, mask_ratio=0.5)

    def masked(topology):
        with load(dataset, topology=topology, text=text) as loader:
            return {
                int(p): (batch.tokens[i].tolist(), batch.labels[i].tolist())
                for batch in loader
                for i, p in enumerate(batch.positions)
            }

    alone = masked(Topology())
    assert masked(Topology(0, 2)) | masked(Topology(1, 2)) == alone
    assert any(any(labels) for _, labels in alone.values())


def test_broken_images_keep_their_places_and_the_same_substitutes_on_any_topology(tmp_path):
    dataset = open_dataset(write(tmp_path / "broken", frozenset({3, 50})))
    whole = collect(load(open_dataset(write(tmp_path / "whole"))))
    loader = load(dataset)
    alone = collect(loader)
    assert loader.stats.substituted == 2
    assert {line.split("sample ")[1].split()[0] for line in loader.bad_samples} == {"000000003", "000000050"}
    replaced = {position for position in whole if whole[position][0] in ("000000003", "000000050")}
    assert {position for position in whole if alone[position] != whole[position]} == replaced
    assert not {"000000003", "000000050"} & {key for key, _ in alone.values()}
    parts = [collect(load(dataset, topology=Topology(r, 3), workers=1)) for r in range(3)]
    assert {position: sample for part in parts for position, sample in part.items()} == alone


def test_the_same_sample_ends_a_run_whatever_the_threads_do(tmp_path):
    dataset = open_dataset(write(tmp_path / "d", frozenset(range(0, SAMPLES, 3))))

    def ending(**options) -> str:
        with pytest.raises(DataError, match=r"could not be decoded, .* 1% allows, the last: ") as error:
            collect(load(dataset, **options))
        return str(error.value)

    endings = {ending(workers=workers) for workers in (1, 2, 5)}
    assert len(endings) == 1
    assert "/d-000000.tar: image of sample 0000000" in endings.pop()


def test_failing_on_bad_samples_names_the_first_of_the_stream(tmp_path):
    dataset = open_dataset(write(tmp_path / "d", frozenset({3, 50, 60})))
    whole = collect(load(open_dataset(write(tmp_path / "whole"))))
    bad = [key for _, (key, _) in sorted(whole.items()) if key in ("000000003", "000000050", "000000060")]
    for workers in (1, 4):
        with pytest.raises(
            DataError, match=rf"sample {bad[0]} cannot be decoded .*--on-bad-sample substitute"
        ):
            collect(load(dataset, workers=workers, batch=48, bad_samples=BadSamplePolicy("fail")))


def test_damaged_bytes_are_substituted_and_named_once(dataset):
    whole = collect(load(dataset))
    damage(dataset)
    loader = load(dataset, stop=192)  # two epochs
    damaged = collect(loader)
    changed = {whole[position][0] for position in whole if damaged[position] != whole[position]}
    assert len(changed) == 1
    assert loader.stats.substituted == 2
    (reason,) = loader.bad_samples
    assert "d-000000.tar" in reason
    assert "wrong checksum" in reason


def damage(dataset):
    with open(f"{dataset.folder.address}/d-000000.tar", "r+b") as file:
        file.seek(100_000)
        file.write(b"xxxxxxxx")


def test_evaluation_refuses_a_broken_image_instead_of_leaving_it_out(tmp_path):
    dataset = open_dataset(write(tmp_path / "d", frozenset({7})))
    with pytest.raises(DataError, match=r"sample 000000007 cannot be decoded"):
        collect(evaluate(dataset, Topology()))


def evaluate(dataset, topology):
    return evaluation_loader(
        dataset,
        topology,
        batch_size=16,
        images=EvalImages(SIZE),
        text=TextStage(get_tokenizer("tiny")),
        options=LoaderOptions(2, 10**6),
    )


def test_evaluation_reads_each_sample_once_last_partial_batch_included(dataset):
    keys = [
        key
        for rank in range(4)
        for _, (key, _) in sorted(collect(evaluate(dataset, Topology(rank, 4))).items())
    ]
    assert keys == [f"{n:09d}" for n in range(SAMPLES)]


def test_a_batch_stays_valid_until_the_one_after_the_next(dataset):
    with load(dataset, stop=24 * 30) as loader:
        before = None
        for batch in loader:
            if before is not None:
                assert torch.equal(before[0].images, before[1])
            before = (batch, batch.images.clone())


@pytest.mark.parametrize("leave", ["after the end", "in the middle", "by an exception", "before the start"])
def test_no_thread_is_left_behind(dataset, leave):
    threads = threading.active_count()
    try:
        with load(dataset, stop=None if leave != "after the end" else 96) as loader:
            if leave != "before the start":
                for number, _ in enumerate(loader):
                    if leave == "by an exception" and number == 2:
                        raise KeyError
                    if leave == "in the middle" and number == 2:
                        break
    except KeyError:
        pass
    deadline = time.monotonic() + 2
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_altered_shard_reaches_the_consumer_as_one_error(dataset):
    damage(dataset)
    with pytest.raises(DataError, match="was altered"):
        collect(load(dataset, bad_samples=BadSamplePolicy("fail")))


class Misbehaves:
    """An image stage that does something else at one of the first samples it sees."""

    uniforms = 0
    size = SIZE

    def __init__(self, act):
        self.act, self.seen = act, 0

    def __call__(self, data, uniforms, out):
        self.seen += 1
        if self.seen == 5:
            self.act()


def raw_loader(dataset, images, **arguments):
    plan = Mixture([dataset], [12]).plan(stop=96)
    stream = SampleStream(dataset, plan)
    return Loader(stream, batch_size=24, images=images, text=None, workers=2, **arguments)


@pytest.mark.parametrize("error", [MemoryError, SystemExit, KeyboardInterrupt])
def test_whatever_ends_a_decoding_thread_reaches_the_consumer(dataset, error):
    def fail():
        raise error("of the thread")

    with pytest.raises(error, match="of the thread"), raw_loader(dataset, Misbehaves(fail)) as loader:
        list(loader)


def test_an_image_that_never_ends_is_named_and_the_loader_still_closes(dataset):
    release = threading.Event()
    stuck = Misbehaves(lambda: release.wait(30))
    begin = time.monotonic()
    try:
        with (
            pytest.raises(DataError, match=r"decoding of sample 0000000\d\d of .*/d-000000\.tar"),
            raw_loader(dataset, stuck, patience=Patience(warn_after=0.1, give_up_after=0.3)) as loader,
        ):
            list(loader)
        assert time.monotonic() - begin < 2
    finally:
        release.set()


def test_no_thread_is_left_when_the_iterator_is_dropped(dataset):
    threads = threading.active_count()
    iterator = iter(load(dataset, stop=None))
    next(iterator)
    del iterator
    assert threading.active_count() == threads


def test_no_file_is_left_open_when_the_loader_is_closed(dataset):
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with load(dataset, stop=None) as loader:
            next(iter(loader))
    assert len(os.listdir("/proc/self/fd")) == files


def test_an_iteration_goes_on_after_close_with_an_error_and_no_batch(dataset):
    loader = load(dataset, stop=96)
    batches = iter(loader)
    next(batches)
    loader.close()
    with pytest.raises(CancelledError, match="the loader was closed"):
        next(batches)
    with pytest.raises(CancelledError):
        next(iter(loader))


def test_an_iteration_closed_by_another_thread_never_looks_complete_and_hands_out_only_whole_batches(dataset):
    whole: list[bool] = []
    for trial in range(30):
        loader = load(dataset, stop=None)
        closer = threading.Timer(0.001 * trial, loader.close)
        closer.start()
        begin = time.monotonic()
        with pytest.raises(CancelledError, match="the loader was closed"):
            whole.extend(all(batch.keys) for batch in loader)
        assert time.monotonic() - begin < 5
        closer.join()
    assert whole
    assert all(whole)


def test_close_ends_the_wait_for_a_batch_that_never_comes(dataset):
    release = threading.Event()
    loader = raw_loader(dataset, Misbehaves(lambda: release.wait(30)))
    closer = threading.Timer(0.3, loader.close)
    closer.start()
    begin = time.monotonic()
    try:
        with pytest.raises(CancelledError):
            list(loader)
        assert time.monotonic() - begin < 2
    finally:
        release.set()
        closer.join()


def test_a_stream_that_is_closed_under_the_loader_does_not_look_like_its_end(dataset):
    plan = Mixture([dataset], [12]).plan(stop=96)
    stream = SampleStream(dataset, plan)
    stream.close()
    with (
        Loader(stream, batch_size=24, images=Misbehaves(lambda: None), text=None, workers=2) as loader,
        pytest.raises(CancelledError),
    ):
        list(loader)
