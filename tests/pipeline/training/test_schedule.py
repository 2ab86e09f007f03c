"""Run lengths and learning rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.length import RunLength
from pipeline.training.schedule import CosineSchedule


def test_learning_rate_warms_up_then_falls_to_zero():
    schedule = CosineSchedule(peak=1.0, warmup=100, total=1100)
    assert schedule.at(0) == pytest.approx(0.01)
    assert schedule.at(99) == pytest.approx(1.0)
    assert schedule.at(600) == pytest.approx(0.5)
    assert schedule.at(1100) == pytest.approx(0.0)
    assert schedule.at(5000) == pytest.approx(0.0)


@given(st.integers(1, 500), st.integers(1, 60), st.integers(1, 5))
def test_a_run_of_epochs_ends_with_the_first_batch_that_reaches_its_end(epoch, batch, epochs):
    length = RunLength.plan(epoch=epoch, global_batch=batch, epochs=epochs, steps=None)
    assert length.stop % batch == 0
    assert epochs * epoch <= length.stop < epochs * epoch + batch
    assert length.horizon == epochs * epoch


def test_steps_stop_early_without_changing_the_schedule():
    length = RunLength.plan(epoch=100, global_batch=10, epochs=5, steps=7)
    assert (length.stop, length.horizon) == (70, 500)
    alone = RunLength.plan(epoch=100, global_batch=10, epochs=None, steps=70)
    assert (alone.stop, alone.horizon) == (700, 700)


@given(st.integers(1, 30), st.integers(0, 30), st.integers(1, 9))
def test_a_resumed_run_ends_where_the_whole_one_ends(steps, done, batch):
    whole = RunLength.plan(epoch=50, global_batch=batch, epochs=None, steps=steps)
    done = min(done, steps)
    resumed = RunLength.plan(
        epoch=50, global_batch=batch, epochs=None, steps=steps, start=done * batch, step=done
    )
    assert (resumed.stop, resumed.horizon) == (whole.stop, whole.horizon)


def test_ends_of_epochs_are_noticed_also_in_mid_batch():
    length = RunLength.plan(epoch=10, global_batch=4, epochs=3, steps=None)
    assert [length.ends_epoch(seen) for seen in range(4, 33, 4)] == [0, 0, 1, 0, 2, 0, 0, 3]
