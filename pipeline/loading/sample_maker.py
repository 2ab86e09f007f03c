"""One sample from raw bytes to its place in a batch: read, decoded, substituted where bad, transformed."""

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from pipeline.decode import ImageError, ImageStage
from pipeline.loading.bad_samples import BadSamplePolicy, failure
from pipeline.loading.growing_batch import GrowingBatch
from pipeline.loading.statistics import DECODING, READING, TRANSFORMING, ThreadStats
from pipeline.user_transform import Example, UserTransform
from pipeline.wording import counted
from shards import DamagedSample, DataError, RawSample, Sample, UsageError
from shards.stream import Plan

_BLOCKS_LOOKED_AT = 16  # for columns that a first batch has not
_NO_COLUMNS: dict[str, Any] = {}


class SampleMaker:
    """Makes samples in their places; any number of threads may use one."""

    def __init__(
        self,
        plan: Plan,
        images: ImageStage,
        transform: UserTransform | None,
        columns: Sequence[str],
        policy: BadSamplePolicy,
    ) -> None:
        self._plan, self._images, self._transform = plan, images, transform
        self._columns, self._policy = columns, policy

    def make(self, growing: GrowingBatch, index: int, stats: ThreadStats) -> None:
        """Make the sample of a place; a substitute where it is damaged or cannot be decoded."""
        raw, batch = growing.samples[index], growing.batch
        crop, out = growing.crops[index], growing.pixels[index]
        try:
            sample, columns = self._decode(raw, raw.slot, crop, out, stats)
        except _Bad as bad:
            growing.bad[index] = raw.number, str(bad)
            if self._policy.action == "leave_out":
                batch.left_out[index] = str(bad)
                return
            slot, sample, columns = self._substitute(raw, bad, crop, out, stats)
            batch.numbers[index] += slot - raw.slot
        caption = sample.caption
        if len(sample.captions) > 1:
            if growing.captions:
                caption = sample.captions[int(growing.captions[index] * len(sample.captions))]
            else:
                batch.more_captions[index] = sample.captions[1:]
        if self._transform and growing.transforms:
            random = np.random.default_rng(growing.transforms[index])
            caption, columns = self._change(raw, Example(sample.key, out, caption, columns, random), stats)
        batch.keys[index], batch.captions[index] = sample.key, caption
        for name in self._columns:
            batch.columns[name][index] = columns.get(name)
        stats.samples += 1
        stats.image_bytes += len(sample.image)

    def check_columns(self, growing: GrowingBatch) -> None:
        """UsageError where a column that was asked for is in no sample of a batch, nor in the others of some
        of its blocks.
        """
        missing = {
            name for name, values in growing.batch.columns.items() if all(value is None for value in values)
        }
        there: set[str] = set()
        looked = 0
        by_block = {raw.block: raw for raw in growing.samples} if missing else {}
        for raw in islice(by_block.values(), _BLOCKS_LOOKED_AT):
            for slot in range(int(raw.dataset.blocks.samples[raw.block])):
                with suppress(DamagedSample):
                    there.update(raw.read(slot).columns)
                looked += 1
            if missing <= there:
                return
        if missing := missing - there:
            raise UsageError(
                f"no column {', '.join(sorted(missing))}: none of {counted(looked, 'sample')} looked at has "
                f"it; they have {', '.join(sorted(there)) or 'no columns at all'}"
            )

    def _decode(
        self, raw: RawSample, slot: int, crop: Sequence[float], out: np.ndarray, stats: ThreadStats
    ) -> tuple[Sample, dict[str, Any]]:
        """The sample in a slot of a block and its columns, its pixels written to `out`."""
        begin = time.perf_counter()
        stats.stage = READING
        try:
            sample = raw.read(slot)
            columns = self._columns_of(sample, raw) if self._columns or self._transform else _NO_COLUMNS
        except DamagedSample as error:
            raise _Bad(str(error)) from error
        finally:
            parsed = time.perf_counter()
            stats.parse += parsed - begin
        stats.sample, stats.stage = (sample.key, raw), DECODING
        try:
            self._images(sample.image, crop, out)
        except ImageError as error:
            shard = raw.dataset.shard_address(raw.block)
            raise _Bad(f"{shard}: image of sample {sample.key} cannot be decoded ({error})") from error
        finally:
            stats.decode += time.perf_counter() - parsed
        return sample, columns

    def _columns_of(self, sample: Sample, raw: RawSample) -> dict[str, Any]:
        try:
            return sample.columns
        except DamagedSample as error:
            raise DamagedSample(f"{raw.dataset.shard_address(raw.block)}: {error}") from error

    def _change(self, raw: RawSample, example: Example, stats: ThreadStats) -> tuple[str, dict[str, Any]]:
        """What the user's transform makes of a sample: its caption and columns; the image stays in place."""
        assert self._transform
        begin, out = time.perf_counter(), example.image
        stats.stage = TRANSFORMING
        try:
            changed = self._transform(example)
        except DataError as error:
            shard = raw.dataset.shard_address(raw.block)
            raise DataError(f"{shard}: sample {example.key}: {error}") from error
        if changed.image is not out:
            out[:] = changed.image
        stats.transform += time.perf_counter() - begin
        return changed.caption, changed.columns

    def _substitute(
        self, raw: RawSample, bad: "_Bad", crop: Sequence[float], out: np.ndarray, stats: ThreadStats
    ) -> tuple[int, Sample, dict[str, Any]]:
        """The slot, sample and columns of another in the block, its pixels written to `out`; DataError where
        there is none.
        """
        substitutes = self._plan.substitutes(raw.epoch, raw.block, raw.slot)
        for slot in substitutes if self._policy.action == "substitute" else ():
            try:
                return slot, *self._decode(raw, slot, crop, out, stats)
            except _Bad:
                continue
        raise failure(str(bad), self._policy) from bad.__cause__


class _Bad(Exception):
    """A sample is damaged or cannot be decoded; the message says where and why."""
