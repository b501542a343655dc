"""How much each weight matters; the lowest are pruned first.

Example:
    ```python
    score = find("taylor")
    score(kernel, "dense/kernel", gradient)   # float array of the kernel's shape
    ```
"""

import zlib

import numpy as np


def magnitude(weight, path, gradient):
    """`|w|`.

    Reference:
        Han et al., "Learning both Weights and Connections for Efficient Neural
        Networks", 2015. arXiv:1506.02626
    """
    return np.abs(weight)


def random(weight, path, gradient):
    """Numbers that depend on the path and shape alone, so that masks grow."""
    return np.random.default_rng(zlib.crc32(path.encode())).random(
        weight.shape, "float32"
    )


def taylor(weight, path, gradient):
    """`|w * g|`: what the loss changes by without the weight, to first order.

    At initialization, all at once, this is SNIP.

    Reference:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019,
        eq. 8. arXiv:1906.10771; Lee et al., "SNIP", 2018, eq. 4. arXiv:1810.02340
    """
    return np.abs(weight * gradient)


_BY_NAME = {"magnitude": magnitude, "random": random, "taylor": taylor}
# Those that read gradients.
FROM_GRADIENTS = ("taylor",)


def find(score):
    """The function that a user names, or the user's own.

    Args:
        score: `"magnitude"`, `"random"`, `"taylor"` or a function from weight (float32
            array) and path to scores.

    Returns:
        Function of weight, path and gradient (`None` where none is needed).

    Raises:
        ValueError: If there is none of that name.
    """
    if callable(score):
        return lambda weight, path, gradient: score(weight, path)
    if score not in _BY_NAME:
        raise ValueError(
            f"`score` must be one of {list(_BY_NAME)} or a function of a weight and "
            f"its path. Received: score={score!r}"
        )
    return _BY_NAME[score]


def checked(scores, weight, path):
    """Scores as a float array, or an error that names the weight."""
    scores = np.asarray(scores, "float32")
    if scores.shape != weight.shape or not np.isfinite(scores).all():
        raise ValueError(
            f"The scores of weight {path!r} must be finite numbers, one for each "
            f"weight. Received: shape {scores.shape} for {weight.shape}, "
            f"{np.count_nonzero(~np.isfinite(scores))} not finite."
        )
    return scores
