"""What computing costs: measured by batch size, corrected while serving."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service import pace as pacing
from service.pace import MOST_ROWS, Pace, calibrate, power_of_two
from serving import model


@given(number=st.floats(0, 1e12, allow_nan=False))
def test_a_power_of_two_of_at_least_one(number):
    found = power_of_two(number)
    assert found >= 1
    assert found & (found - 1) == 0
    assert found == 1 or found <= number
    assert found == 2**30 or number < 2 * found or number < 1


def test_costs_are_those_of_the_batch_size_that_is_filled_up():
    pace = Pace()
    pace.measure(1, prefix=1, each=10)
    pace.measure(2, prefix=2, each=20)
    pace.measure(4, prefix=3, each=25)
    assert [pace.prefix(rows) for rows in (0, 1, 2, 3, 4, 8)] == [0, 1, 2, 3, 3, 6]
    assert [pace.each(rows) for rows in (0, 1, 2, 3, 4, 8)] == [0, 10, 20, 25, 25, 50]
    assert pace.batch_sizes == (1, 2, 4)


def test_fewer_rows_cost_no_more_than_more():
    pace = Pace()
    pace.measure(1, prefix=5, each=10)
    pace.measure(2, prefix=4, each=20)
    pace.measure(4, prefix=6, each=15)
    assert [(pace.prefix(rows), pace.each(rows)) for rows in (1, 2, 4)] == [(4, 10), (4, 15), (6, 15)]


def test_before_anything_is_measured_there_is_a_guess():
    assert Pace().each(10) > 0
    assert Pace().batch_sizes == (1,)


def test_what_is_seen_corrects_the_prediction_for_that_shape_alone():
    pace = Pace()
    pace.measure(1, prefix=1, each=1)
    for _ in range(60):
        pace.learn(pace.each(1, "long"), 5.0, shape="long")
    assert pace.each(1, "long") == pytest.approx(5, rel=0.05)
    assert pace.each(1, "short") == 1


def test_predictions_stay_finite_and_recover_whatever_is_seen():
    pace = Pace()
    pace.measure(1, prefix=1, each=1)
    for _ in range(300):
        pace.learn(0.0, 1.0, shape="row")
    assert math.isfinite(pace.each(1, "row"))
    for _ in range(60):
        pace.learn(pace.each(1, "row"), 1.0, shape="row")
    assert pace.each(1, "row") == pytest.approx(1, rel=0.05)


def test_sizes_are_measured_until_a_pass_fills_a_slice():
    mc, pace = model("one"), Pace()
    for _ in calibrate(mc, pace, mc.start(torch.zeros(1, 4)).inputs):
        pass
    assert pace.batch_sizes[0] == 1
    assert all(later == 2 * size for size, later in zip(pace.batch_sizes, pace.batch_sizes[1:], strict=False))
    assert pace.most_rows <= MOST_ROWS
    assert all(pace.each(size) > 0 for size in pace.batch_sizes)


def test_turns_that_other_processes_slow_down_do_not_count(monkeypatch):
    slow_but_for_one_of_four = itertools.cycle([0.1] * 6 + [0.001] * 2)  # each turn measures two times
    monkeypatch.setattr(pacing, "_timed", lambda mc, run, passes: passes * next(slow_but_for_one_of_four))
    mc, pace = model("one"), Pace()
    for _ in calibrate(mc, pace, mc.start(torch.zeros(1, 4)).inputs):
        pass
    assert pace.most_rows == MOST_ROWS
    assert pace.prefix(1) + pace.each(1) == pytest.approx(0.001)


@pytest.mark.parametrize(("growth", "most"), [(1.0, MOST_ROWS), (2.0, 1)])
def test_where_one_pass_is_long_more_rows_join_it_only_if_they_are_cheaper_together(monkeypatch, growth, most):
    monkeypatch.setattr(pacing, "_timed", lambda mc, run, passes: passes * 0.1 * growth ** math.log2(run.rows))
    mc, pace = model("one"), Pace()
    for _ in calibrate(mc, pace, mc.start(torch.zeros(1, 4)).inputs):
        pass
    assert pace.most_rows == most
