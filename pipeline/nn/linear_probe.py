"""Linear probes of codes: accuracy for classes, F1 for attributes."""

import warnings
from typing import Any

from torch import Tensor

PENALTY = 1.0  # on the squared weights, over the sum of the images' cross-entropies
ITERATIONS = 500  # of L-BFGS at most
PROTOCOL = {
    "probe": f"softmax regression, penalty {PENALTY:g}, at most {ITERATIONS} steps of L-BFGS",
    "code": "all tokens side by side, every value standardised",
}


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Fraction of rows `test` [m, D] that softmax regression, fitted to rows `train` [n, D], classifies rightly.

    Every column is brought to mean 0 and variance 1 by those of `train` first. Raises ValueError where `train` has
    fewer than two classes.
    """
    if len(labels.unique()) < 2:
        raise ValueError("a linear probe needs two classes or more; evaluate more images")
    return float(_fit(train, labels).score(test.numpy(), test_labels.numpy()))


def probe_attribute(train: Tensor, has: Tensor, test: Tensor, test_has: Tensor) -> tuple[float, float]:
    """F1 and accuracy on rows `test` [m, D] of logistic regression for one attribute, fitted to rows `train` [n, D].

    `has` [n] and `test_has` [m] are bool. F1 of the images that have it, 0 where none is found (Pedregosa et al.'s
    zero_division). Raises ValueError where not both sets have images with it and without.
    """
    from sklearn.metrics import f1_score

    if not have_both(has, test_has):
        raise ValueError("a probe needs images that have the attribute and images that do not; evaluate more images")
    predicted = _fit(train, has).predict(test.numpy())
    actual = test_has.numpy()
    return float(f1_score(actual, predicted, zero_division=0)), float((predicted == actual).mean())


def have_both(*has: Tensor) -> bool:
    """Whether each of the sets has images with and without."""
    return all(bool(of.any()) and not bool(of.all()) for of in has)


def _fit(rows: Tensor, labels: Tensor) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / PENALTY, max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is part of the protocol
        return probe.fit(rows.numpy(), labels.numpy())
