"""The numbers in a prediction, task by task: name -> what it is, its unit, range, formula and source.

The one table behind the result types, the answers over HTTP, the documentation and its tests. In the formulas p_i is
the distribution that pass i predicts, p its mean over the N passes, s_c^2 the variance of class c over passes (ddof 1),
H the entropy, and f_i the value that pass i predicts for a regression.
"""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["FIELDS"]

_PROBABILITIES = {
    "variance": "Variance of the probabilities over passes; 0 to 1/2. s^2, ddof 1, unbiased. Gal & Ghahramani 2016.",
    "std": "Standard deviation of the probabilities over passes; 0 to 0.71. s.",
    "entropy": "Entropy of the reported mean: total uncertainty; nats, 0 to log(classes). H(p). Gal 2016, 3.3.1.",
    "expected_entropy": "Mean entropy of the passes: aleatoric; nats, 0 to entropy. mean_i H(p_i). Houlsby 2011.",
    "mutual_information": (
        "How much the passes disagree: epistemic; nats, 0 to log(classes). The plug-in plus its bias of first order, "
        "(1/2N) sum_c s_c^2 / p_c. Houlsby 2011."
    ),
    "mutual_information_plugin": (
        "entropy - expected_entropy, exactly; nats, 0 to log(classes). Too low for few passes. Houlsby 2011 (BALD)."
    ),
}
_VARIATION_RATIO = (
    "Share of the passes that vote for another class than most do; 0 to 1. 1 - largest vote share. Freeman 1965."
)
_VARIANCES = {
    "mean": "Predicted value: mean over passes; the output's unit. mean_i f_i. Gal & Ghahramani 2016, eq. 6.",
    "variance": (
        "Total variance of the prediction; the output's unit squared. epistemic_variance + aleatoric_variance. "
        "Kendall & Gal 2017, eq. 9."
    ),
    "std": "Standard deviation of the prediction; the output's unit. sqrt(variance).",
    "entropy": (
        "Entropy of a Gaussian of that variance, an upper bound of the mixture's; nats, -inf at variance 0. "
        "1/2 log(2 pi e variance)."
    ),
    "epistemic_variance": "Variance of the predicted values over passes; unit squared. s^2, ddof 1, unbiased.",
}

_CLASSIFICATION = {
    "mean": "Class probabilities: mean over passes; 0 to 1. p = mean_i softmax(f_i). Gal & Ghahramani 2016, eq. 6.",
    **_PROBABILITIES,
    "variation_ratio": _VARIATION_RATIO,
    "vote_shares": "Share of the passes in which the class is the most probable; 0 to 1, sums to 1.",
    "label": "Index of the most probable class of mean; the first one of equals.",
    "confidence": "Probability of label; 1/classes to 1. max_c p_c.",
}
_BINARY = {
    "mean": "P(positive): mean over passes; 0 to 1. p = mean_i sigmoid(f_i). Gal & Ghahramani 2016, eq. 6.",
    **{name: text.replace("log(classes)", "log 2") for name, text in _PROBABILITIES.items()},
    "variation_ratio": _VARIATION_RATIO.replace("0 to 1.", "0 to 1/2."),
    "vote_shares": "Share of the passes that say positive (at least 1/2); 0 to 1.",
    "label": "1 where mean is at least 1/2, else 0.",
    "confidence": "Probability of label; 1/2 to 1. max(p, 1 - p).",
}

FIELDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "classification": MappingProxyType(_CLASSIFICATION),
        "binary": MappingProxyType(_BINARY),
        "multilabel": MappingProxyType(
            {name: f"{text} For each label by itself." for name, text in _BINARY.items()},
        ),
        "regression": MappingProxyType(
            {
                **_VARIANCES,
                "aleatoric_variance": "Variance of the noise in the targets, as given or fitted, else 0; unit squared.",
            }
        ),
        "heteroscedastic": MappingProxyType(
            {
                **_VARIANCES,
                "aleatoric_variance": (
                    "Mean of the noise variances that the passes predict; unit squared. mean_i sigma_i^2. "
                    "Kendall & Gal 2017, eq. 9."
                ),
            }
        ),
        "raw": MappingProxyType(
            {
                "mean": "Mean of the output over passes; the output's unit. mean_i f_i.",
                "variance": "Variance of the output over passes; unit squared. s^2, ddof 1, unbiased.",
                "std": "Standard deviation of the output over passes; the output's unit. s.",
            }
        ),
    }
)
