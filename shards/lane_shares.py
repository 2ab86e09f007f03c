"""Which lanes of a stream belong to which data set of a mixture: by weight, and evenly spread."""

import math
from collections.abc import Sequence

import numpy as np

from shards.errors import UsageError

_RUN = 16
_WORLD_SIZES = (2, 3, 4, 6, 8, 12, 16, 32)


def share_lanes(weights: Sequence[float], lanes: int) -> list[int]:
    """How many of the lanes each data set gets: its weight to the nearest lane (largest remainders first),
    and at least one.

    Raises UsageError where a weight is not above 0, or too small for so few lanes.
    """
    for weight in weights:
        if not 0 < weight < math.inf:
            raise UsageError(f"a weight of {weight:g}: it must be above 0 and finite")
    total = math.fsum(weights)
    needed = max(len(weights), math.ceil(0.5 * total / min(weights)))
    if lanes < needed:
        raise UsageError(
            f"{lanes} lanes are too few for {len(weights)} data sets of which the smallest has "
            f"{min(weights) / total:.2%} of the weight: {min(weights) / total * lanes:.2f} lanes, and half a "
            f"lane is the least; give --lanes {needed} or more"
        )
    exact = [weight / total * lanes for weight in weights]
    counts = [max(1, math.floor(count)) for count in exact]
    while sum(counts) < lanes:
        counts[max(range(len(counts)), key=lambda source: exact[source] - counts[source])] += 1
    while sum(counts) > lanes:  # weights below one lane were given a whole one: those above it make room
        large = (source for source, count in enumerate(counts) if count > 1)
        counts[max(large, key=lambda source: counts[source] - exact[source])] -= 1
    return counts


def spread_lanes(counts: Sequence[int]) -> np.ndarray:
    """The data set of each lane, where data set `s` has `counts[s]` of them: int64 [sum of counts].

    The stream goes through the lanes in turn, so lanes are dealt out evenly (`_deal`). Dealt out like this
    alone, two equal data sets would take the even and the odd lanes, and of two processes each would see one
    data set only: their work, and the statistics of their batch norms, would differ. So inside each run of 16
    lanes, every lane goes where its data set has had the fewest for the usual numbers of processes. What
    follows: a batch, however large, holds each data set's share of it to within 2 samples where it begins and
    ends at a multiple of 16 (of the lanes), to within 10 anywhere; and every process has about that share.
    """
    if len(counts) == 1:
        return np.zeros(counts[0], np.int64)
    dealt = _deal(counts)
    spread = np.empty(len(dealt), np.int64)
    had = [{(size, rank): 0 for size in _WORLD_SIZES for rank in range(size)} for _ in counts]
    for first in range(0, len(dealt), _RUN):
        run = dealt[first : first + _RUN]
        free = list(range(first, first + len(run)))
        for source in run:
            crowding = had[source]
            lane = min(free, key=lambda lane: sum(n * crowding[n, lane % n] for n in _WORLD_SIZES))
            free.remove(lane)
            spread[lane] = source
            for size in _WORLD_SIZES:
                crowding[size, lane % size] += 1
    return spread


def _deal(counts: Sequence[int]) -> list[int]:
    """The lanes in an order of which the first n hold each data set's share of n to within one, for every n.

    Of the data sets that have had less than their share, the one whose next lane is due soonest takes a lane.
    """
    lanes = sum(counts)
    given = [0] * len(counts)
    dealt = []
    for lane in range(lanes):
        waiting = (
            source for source, count in enumerate(counts) if given[source] * lanes < count * (lane + 1)
        )
        source = min(waiting, key=lambda source: -(-(given[source] + 1) * lanes // counts[source]))
        given[source] += 1
        dealt.append(source)
    return dealt
