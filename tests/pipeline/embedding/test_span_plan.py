"""Spans of samples are read as an evaluation reads them, each sample once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embedding.span_plan import SpanPlan, share_of
from shards import EvaluationPlan

blocks = st.lists(st.integers(1, 9), min_size=1, max_size=20).map(np.array)


@given(blocks)
def test_the_span_of_everything_is_an_evaluation(block_samples):
    everything = SpanPlan(block_samples, [(0, int(block_samples.sum()))])
    evaluation = EvaluationPlan(block_samples)
    assert list(everything.places()) == list(evaluation.places())
    assert list(everything.visits()) == list(evaluation.visits())


@given(blocks, st.data())
def test_places_are_those_of_the_spans_and_lie_in_visits(block_samples, data):
    edges = sorted(data.draw(st.sets(st.integers(0, int(block_samples.sum())), min_size=2)))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    plan = SpanPlan(block_samples, spans)
    places = list(plan.places())
    assert [position for position, *_ in places] == [n for span in spans for n in range(*span)]
    firsts = np.cumsum(block_samples) - block_samples
    assert all(firsts[block] + slot == position for position, _, block, slot in places)
    covered = [(block, n) for block, first, last in plan.visits() for n in range(first, last + 1)]
    assert covered == [(block, position) for position, _, block, _ in places]


@given(st.lists(st.integers()), st.integers(1, 9))
def test_ranks_share_pieces_without_loss_or_repetition(pieces, world_size):
    shares = [share_of(pieces, rank, world_size) for rank in range(world_size)]
    assert [piece for share in shares for piece in share] == pieces
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
