"""Run lengths and learning rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.length import LengthFlags, RunLength
from pipeline.training.schedule import ConstantSchedule, CosineSchedule, RestartingSchedule, ScheduleFlags
from shards import UsageError


def test_learning_rate_warms_up_then_falls_to_zero():
    schedule = CosineSchedule(peak=1.0, warmup=100, total=1100)
    assert schedule.at(0) == pytest.approx(0.01)
    assert schedule.at(99) == pytest.approx(1.0)
    assert schedule.at(600) == pytest.approx(0.5)
    assert schedule.at(1100) == pytest.approx(0.0)
    assert schedule.at(5000) == pytest.approx(0.0)


def test_restarts_are_whole_schedules_with_lower_peaks():
    schedule = RestartingSchedule(peak=1.0, warmup=50, total=2000, cycles=2, decay=0.1)
    alone = CosineSchedule(peak=1.0, warmup=50, total=1000)
    assert [schedule.at(seen) for seen in range(1000)] == [alone.at(seen) for seen in range(1000)]
    assert [schedule.at(1000 + seen) for seen in range(1001)] == pytest.approx(
        [alone.at(seen) / 10 for seen in range(1001)]
    )
    assert schedule.at(5000) == pytest.approx(0.0)


def test_a_constant_rate_warms_up_and_stays():
    schedule = ConstantSchedule(peak=2.0, warmup=100)
    assert [schedule.at(seen) for seen in (0, 49, 99, 100, 10**9)] == [0.02, 1.0, 2.0, 2.0, 2.0]
    assert ConstantSchedule(peak=2.0, warmup=0).at(0) == 2.0


@given(st.integers(1, 500), st.integers(1, 60), st.integers(1, 5))
def test_a_run_of_epochs_ends_with_the_first_batch_that_reaches_its_end(epoch, batch, epochs):
    length = LengthFlags(epochs=epochs).plan(epoch=epoch, global_batch=batch, step_samples=batch, start=0)
    assert length.stop % batch == 0
    assert epochs * epoch <= length.stop < epochs * epoch + batch
    assert length.horizon == epochs * epoch


def plan(start: int = 0, batch: int = 10, first_batch: int = 10, **flags: object) -> RunLength:
    return LengthFlags(**flags).plan(epoch=100, global_batch=batch, step_samples=first_batch, start=start)


def test_steps_stop_early_without_changing_the_schedule():
    length = plan(epochs=5, steps=7)
    assert (length.stop, length.horizon) == (70, 500)
    alone = plan(steps=70)
    assert (alone.stop, alone.horizon) == (700, 700)
    samples = plan(samples="1.2k", steps=3)
    assert (samples.stop, samples.horizon) == (30, 1200)


def test_samples_are_a_length_of_their_own():
    assert (plan(samples="1_234").horizon, plan(samples="1234").stop) == (1234, 1240)
    assert plan(samples="2M").stop == 2_000_000
    assert plan().stop == 1000  # ten epochs where nothing is said
    with pytest.raises(UsageError, match="--epochs and --samples say the same thing twice"):
        LengthFlags(epochs=1, samples="3M").check_length()
    for nonsense in ("many", "-3", "0", "1.5Q", "0.0001"):
        with pytest.raises(UsageError, match="--samples"):
            LengthFlags(samples=nonsense).check_length()


@given(st.integers(1, 30), st.integers(0, 30), st.integers(1, 9))
def test_a_resumed_run_ends_where_the_whole_one_ends(steps, done, batch):
    whole = plan(batch=batch, first_batch=batch, steps=steps)
    resumed = plan(min(done, steps) * batch, batch, batch, steps=steps)
    assert (resumed.stop, resumed.horizon) == (whole.stop, whole.horizon)


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), st.integers(0, 300))
def test_another_batch_size_at_a_resume_changes_no_length(steps, first_batch, batch, start):
    """Steps are those of the first batch: the run ends with the batch that reaches the same sample."""
    whole = plan(batch=first_batch, first_batch=first_batch, steps=steps)
    start = min(start, whole.stop)
    resumed = plan(start, batch, first_batch, steps=steps)
    assert resumed.horizon == whole.horizon
    assert whole.stop <= resumed.stop < whole.stop + batch


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_what_comes_every_so_many_samples_comes_as_often_with_any_batch(period, batch, other, count):
    """Batches change in mid-run: each multiple of the period is noticed by the batch that reaches it."""
    seen, noticed = 0, 0
    for size in (batch, other):
        length = plan(batch=size, steps=1)
        for _ in range(count):
            seen += size
            noticed += length.passes(seen, period) > 0
    most = min(seen // period, 2 * count)
    assert noticed <= most
    if period >= max(batch, other):
        assert noticed == seen // period


@pytest.mark.parametrize("scheduler", ["cosine", "const", "cosine-restarts"])
def test_flags_make_the_schedule_that_they_name(scheduler):
    flags = ScheduleFlags(lr=1.0, warmup=3, scheduler=scheduler)
    schedule = flags.schedule(1000, flags.warmup_samples(1000, 10))
    assert schedule.at(29) == pytest.approx(1.0)
    at_end = {"cosine": 0.0, "const": 1.0, "cosine-restarts": 0.0}[scheduler]
    assert schedule.at(1000) == pytest.approx(at_end)
    assert (schedule.at(250 + 29) == pytest.approx(0.1)) == (scheduler == "cosine-restarts")


def test_a_warm_up_is_a_tenth_of_the_run_or_of_a_cycle_where_nothing_is_said():
    assert ScheduleFlags().warmup_samples(1000, 10) == 100
    assert ScheduleFlags(scheduler="cosine-restarts", restarts=5).warmup_samples(1000, 10) == 20
    assert ScheduleFlags().warmup_samples(10**12, 10) == 100_000


def test_restarts_without_their_scheduler_are_refused():
    with pytest.raises(UsageError, match="belong to --scheduler cosine-restarts, not cosine"):
        ScheduleFlags(restarts=3).check_schedule()


def test_ends_of_epochs_are_noticed_also_in_mid_batch():
    length = RunLength.plan(epoch=10, global_batch=4, full=30, most=None)
    assert [length.ends_epoch(seen) for seen in range(4, 33, 4)] == [0, 0, 1, 0, 2, 0, 0, 3]
