"""The usual troubles of training with dropout, read off its curves, with what to try against each.

Every function is pure: it takes the losses of several trainings that differ in their seed alone, (seeds, epochs), and
returns a Trouble or None. Validation losses are measured with dropout off, training losses with dropout on, so that a
training loss above the validation loss means nothing. The thresholds are rules of thumb, stated beside each function;
all compare losses with losses, so that their unit does not matter.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["LEAST_EPOCHS", "Trouble", "no_gain", "noisy", "not_converging", "still_overfitting"]

LEAST_EPOCHS = 10  # of a curve that can be judged
Curves = Float[np.ndarray, "seeds epochs"]


@dataclass(frozen=True)
class Trouble:
    """A trouble: its stable code, what was seen, and what to try."""

    code: str
    seen: str
    advice: str


def not_converging(training: Curves, validation: Curves, *, ignorant: float) -> Trouble | None:
    """The network has learned nothing, or has not finished.

    Nothing: neither loss ever fell below 90 % of `ignorant`, the loss of the best answer that ignores the input. Not
    finished: the last fifth of the epochs still brought more than 5 % of all that the validation loss fell.
    """
    lowest = min(_smooth(training).min(), _smooth(validation).min())
    if lowest > 0.9 * ignorant:
        return Trouble(
            "not-converging",
            f"the loss stays at {lowest:.3g}, and an answer that ignores the input has {ignorant:.3g}",
            "a learning rate ten times lower or higher, inputs scaled to about -1 to 1, a lower dropout rate",
        )
    mean, fifth = validation.mean(axis=0), validation.shape[1] // 5
    before, after = mean[-2 * fifth : -fifth].mean(), mean[-fifth:].mean()
    if before - after > 0.05 * (ignorant - after):
        return Trouble(
            "not-converging",
            f"the validation loss still falls: {before:.3g} to {after:.3g} in the last fifth of the epochs",
            "more epochs, or a higher learning rate",
        )
    return None


def still_overfitting(training: Curves, validation: Curves) -> Trouble | None:
    """The validation loss ends more than 10 % above its lowest point, and above the training loss."""
    smooth = _smooth(validation)
    lowest, end = smooth.min(), smooth[-1]
    if end <= 1.1 * lowest or _smooth(training)[-1] >= end:
        return None
    epoch = int(smooth.argmin()) + 2  # the middle of three epochs, counted from 1
    return Trouble(
        "still-overfitting",
        f"the validation loss rose by {end / lowest - 1:.0%} after epoch {epoch}, to {end:.3g}",
        "a higher dropout rate, early stopping (patience), more weight decay, augmentation, mixup or cutmix, a smaller "
        "network, more data",
    )


def noisy(validation: Curves) -> Trouble | None:
    """In the second half of the epochs the validation loss strays by more than 10 % from the middle of its neighbours,
    on average over epochs and seeds. A straight slope is no noise."""
    half = validation[:, validation.shape[1] // 2 :]
    strays = np.abs(half[:, 1:-1] - (half[:, :-2] + half[:, 2:]) / 2).mean()
    level = half.mean()
    if strays <= 0.1 * level:
        return None
    return Trouble(
        "noisy",
        f"the validation loss jumps by {strays / level:.0%} from epoch to epoch",
        "a lower learning rate, larger batches, more validation data, a lower dropout rate",
    )


def no_gain(gains: Float[np.ndarray, " seeds"]) -> Trouble | None:
    """The best rate above 0 beats rate 0 by no more than two standard errors; `gains` are its gains in NLL by seed."""
    mean, error = gains.mean(), gains.std(ddof=1) / np.sqrt(len(gains))
    if mean > 2 * error:
        return None
    return Trouble(
        "no-gain",
        f"with dropout the NLL changes by {-mean:+.3g} ± {error:.2g} at best; a gain is more than two standard errors "
        "below 0",
        "lower rates, dropout in fewer places, more epochs or a wider network; where data are plentiful or augmented, "
        "dropout may have nothing to do but to show the uncertainty",
    )


def _smooth(curves: Curves) -> Float[np.ndarray, " rest"]:
    """Mean over seeds, then over three neighbouring epochs."""
    return np.convolve(curves.mean(axis=0), np.full(3, 1 / 3), mode="valid")
