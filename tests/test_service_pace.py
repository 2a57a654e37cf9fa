"""Slices: long enough for PyTorch, short enough for whoever waits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.pace import SLICE_SECONDS, Pace, timed_slices
from serving import model


@given(rows=st.integers(0, 10_000), passes=st.integers(1, 10_000), seconds=st.floats(0, 1e3, allow_nan=False))
def test_a_slice_is_a_power_of_two_of_at_least_one_pass_and_not_too_long(rows, passes, seconds):
    pace = Pace()
    pace.learn(rows=rows, passes=passes, seconds=seconds)
    slice_ = pace.passes(rows=rows)
    assert slice_ >= 1
    assert slice_ & (slice_ - 1) == 0
    assert slice_ == 1 or slice_ * seconds / passes <= SLICE_SECONDS * 1.001


def test_a_pace_is_learned_anew_when_the_machine_slows_down():
    pace = Pace()
    pace.learn(rows=1, passes=64, seconds=0.001)
    fast = pace.passes(rows=1)
    for _ in range(20):
        pace.learn(rows=1, passes=64, seconds=1.0)
    assert pace.passes(rows=1) == 2 < fast


def test_a_run_in_slices_is_the_run_as_a_whole():
    mc, rows = model("one"), np.array([[0.1, -0.5, 2.0, 1.5]] * 3, np.float32)
    run = mc.start(rows, num_samples=100, seed=7)
    slices = sum(1 for _ in timed_slices(run, mc, Pace()))
    assert slices >= 1  # the first slice has 8 passes, so there are more
    whole = mc(rows, num_samples=100, seed=7)
    np.testing.assert_allclose(run.prediction().mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(run.prediction().variance, whole.variance, rtol=1e-4)
