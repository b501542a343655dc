"""How much each weight matters; the lowest are pruned first.

A score is a function of a weight and of one thing more that it reads, by name: the
callback sees to it that it is there.

Example:
    ```python
    score = find("taylor")
    score.reads                                         # "gradients"
    score.function(kernel, "dense/kernel", gradient)    # array of the kernel's shape
    ```
"""

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np


def magnitude(weight, path, signal):
    """`|w|`.

    Reference:
        Han et al., "Learning both Weights and Connections for Efficient Neural
        Networks", 2015. arXiv:1506.02626
    """
    return np.abs(weight)


def random(weight, path, signal):
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


def grasp(weight, path, product):
    """`w * (H g)`: what the squared length of the gradient loses without the weight.

    The paper's eq. 8 has the opposite sign and drops the highest. Its temperature on
    the logits is left out: the loss is the model's own.

    Reference:
        Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient
        Flow", 2020, eq. 8. arXiv:2002.07376
    """
    return weight * product


def movement(weight, path, moved):
    """Sum of `w * (change of w)` over the steps: weights that go away from zero stay.

    With plain SGD the change is `-learning rate * g`, and this is the paper's.

    Reference:
        Sanh et al., "Movement Pruning", 2020, eq. 3. arXiv:2005.07683
    """
    return moved


def wanda(weight, path, norms):
    """`|w|` times the L2 norm of the input feature that it multiplies.

    Reference:
        Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
        2023, eq. 1. arXiv:2306.11695. There the weights of each output are compared;
        here those of the scope.
    """
    return np.abs(weight) * norms


@dataclasses.dataclass(frozen=True)
class Score:
    """A criterion.

    Attributes:
        function: From weight (float32 array), path and what it reads to scores.
        reads: `"gradients"`, `"gradient_flow"` (Hessian-gradient products) and
            `"input_norms"`, all of which come from data, `"movement"`, which training
            adds up, or `None`.
        at_once: Whether everything is pruned before the first step by default.
    """

    function: Callable
    reads: str | None = None
    at_once: bool = False

    @property
    def needs_data(self):
        """Whether what it reads is computed from data."""
        return self.reads not in (None, "movement")


_BY_NAME = {
    "magnitude": Score(magnitude),
    "random": Score(random),
    "taylor": Score(taylor, "gradients"),
    "snip": Score(taylor, "gradients", at_once=True),
    "grasp": Score(grasp, "gradient_flow", at_once=True),
    "movement": Score(movement, "movement"),
    "wanda": Score(wanda, "input_norms"),
}


def find(score):
    """The score that a user names, or the user's own.

    Args:
        score: One of the names, or a function from weight (float32 array) and path to
            scores.

    Returns:
        A `Score`.

    Raises:
        ValueError: If there is none of that name.
    """
    if callable(score):
        return Score(lambda weight, path, signal: score(weight, path))
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
