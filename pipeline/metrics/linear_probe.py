"""What a linear map reads off a code: the accuracy of a probe."""

import warnings

from torch import Tensor

PENALTY = 1.0  # on the squared weights, over the sum of the images' cross-entropies
ITERATIONS = 500  # of L-BFGS at most


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Share of rows `test` [m, D] that softmax regression, fitted to rows `train` [n, D], puts into their class.

    Every column is brought to mean 0 and variance 1 by those of `train` first. Raises ValueError where `train` has
    fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(labels.unique()) < 2:
        raise ValueError("a linear probe needs two classes or more; evaluate more images")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / PENALTY, max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is part of the protocol
        probe.fit(train.numpy(), labels.numpy())
    return float(probe.score(test.numpy(), test_labels.numpy()))
