"""The usual troubles, on curves drawn for the purpose: each with curves that show it, and curves that nearly do."""

import numpy as np
import pytest

from mcdrop.sweep.troubles import LEAST_EPOCHS, no_gain, noisy, not_converging, still_overfitting

EPOCHS = np.arange(40.0)
IGNORANT = 2.3


def seeds(curve):
    """Two trainings with this curve."""
    return np.stack([curve, curve])


def falling(*, to, half_life, start=IGNORANT):
    return seeds(to + (start - to) * 0.5 ** (EPOCHS / half_life))


HEALTHY = falling(to=0.3, half_life=2), falling(to=0.4, half_life=2)  # training and validation loss


def test_healthy_curves_show_nothing():
    training, validation = HEALTHY
    assert not_converging(training, validation, ignorant=IGNORANT) is None
    assert still_overfitting(training, validation) is None
    assert noisy(validation) is None


def test_the_shortest_curve_can_be_judged():
    training, validation = (curve[:, :LEAST_EPOCHS] for curve in HEALTHY)
    assert not_converging(training, validation, ignorant=IGNORANT).seen.startswith("the validation loss still falls")
    assert still_overfitting(training, validation) is None
    assert noisy(validation) is None


def test_a_loss_of_one_who_ignores_the_input_is_not_converging():
    flat = seeds(np.full(40, 0.95 * IGNORANT))
    trouble = not_converging(flat, flat, ignorant=IGNORANT)
    assert trouble.code == "not-converging"
    assert "stays at 2.18" in trouble.seen
    assert "learning rate" in trouble.advice
    almost = seeds(np.full(40, 0.85 * IGNORANT))
    assert not_converging(almost, almost, ignorant=IGNORANT) is None


def test_an_overfitted_network_has_learned_something():
    """Its validation loss is above that of ignorance, and its training loss is not."""
    training, validation = falling(to=0.01, half_life=2), seeds(np.linspace(2.3, 3.0, 40))
    assert not_converging(training, validation, ignorant=IGNORANT) is None
    assert still_overfitting(training, validation) is not None


def test_a_loss_that_still_falls_is_not_converging():
    """The last fifth of a straight slope brings a fifth of all; of a curve with a half-life of 8 epochs 3 %."""
    slope = seeds(np.linspace(IGNORANT, 0.3, 40))
    trouble = not_converging(slope, slope, ignorant=IGNORANT)
    assert trouble.code == "not-converging"
    assert "more epochs" in trouble.advice
    bent = falling(to=0.3, half_life=8)
    assert not_converging(bent, bent, ignorant=IGNORANT) is None


@pytest.mark.parametrize(("rise", "seen"), [(1.15, "rose by 15% after epoch 21, to 0.46"), (1.08, None)])
def test_a_validation_loss_that_rises_is_overfitting(rise, seen):
    """From its lowest point in epochs 20 to 22."""
    validation = np.concatenate([np.linspace(2, 0.4, 20), [0.4, 0.4], np.linspace(0.4, 0.4 * rise, 15)])
    validation = np.concatenate([validation, np.full(3, 0.4 * rise)])
    trouble = still_overfitting(HEALTHY[0], seeds(validation))
    assert (trouble and (trouble.code, seen in trouble.seen)) == (seen and ("still-overfitting", True))


def test_a_rise_with_the_training_loss_is_no_overfitting():
    """Both losses rise: training diverges."""
    rising = seeds(np.concatenate([np.linspace(2, 0.4, 20), np.linspace(0.4, 0.8, 20)]))
    assert still_overfitting(rising + 0.01, rising) is None
    assert still_overfitting(rising - 0.01, rising) is not None


def test_overfitting_is_judged_by_the_mean_over_seeds_and_neighbours():
    """Two seeds that dip at different epochs by a quarter: the lowest point of a single curve says little."""
    jump = np.zeros((2, 40))
    jump[0, 20] = jump[1, 30] = 0.1
    assert still_overfitting(HEALTHY[0], HEALTHY[1] - jump) is None
    assert still_overfitting(HEALTHY[0], HEALTHY[1] - 4 * jump) is not None


@pytest.mark.parametrize(("jump", "is_noisy"), [(0.06, True), (0.04, False)])
def test_a_loss_that_jumps_is_noisy(jump, is_noisy):
    """Up and down by `jump` of its level: each point is twice that away from the middle of its neighbours."""
    zigzag = seeds(0.5 * (1 + jump * (-1) ** EPOCHS))
    trouble = noisy(zigzag)
    assert (trouble is not None) == is_noisy
    assert trouble is None or (trouble.code, "12%" in trouble.seen) == ("noisy", True)


def test_noise_does_not_cancel_between_seeds():
    zigzag = 0.1 * (-1) ** EPOCHS
    assert noisy(np.stack([0.5 + zigzag, 0.5 - zigzag])) is not None


def test_a_steep_slope_is_no_noise():
    assert noisy(seeds(np.linspace(40.0, 1.0, 40))) is None


def test_gains_within_two_standard_errors_are_no_gain():
    """Gains of 1, 2 and 3: mean 2, standard error 0.577; one more makes the difference."""
    assert no_gain(np.array([1.0, 2.0, 3.0])) is None
    trouble = no_gain(np.array([1.0, 2.0, 3.0]) - 1)
    assert trouble.code == "no-gain"
    assert "-1 ± 0.58 at best" in trouble.seen
    assert no_gain(np.array([1.0, 2.0, 3.0]) - 0.8) is None
    assert no_gain(np.array([-1.0, -1.0])) is not None
    assert no_gain(np.array([0.0, 0.0])) is not None
