"""Which weights to keep.

Example:
    ```python
    mask = magnitude_mask(kernel, sparsity=0.8)   # bool, True = keep
    ```
"""

import numpy as np


def check_sparsity(sparsity):
    """Returns `sparsity` as a float, or raises if it is not in [0, 1)."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float, np.number)):
        raise TypeError(
            f"`sparsity` must be a number in [0, 1). Received: sparsity={sparsity!r} "
            f"(of type {type(sparsity).__name__})"
        )
    if not 0 <= sparsity < 1:
        hint = (
            f" For {sparsity:g}% zeros pass sparsity={sparsity / 100:g}."
            if 1 < sparsity < 100
            else " For 80% zeros pass sparsity=0.8."
        )
        raise ValueError(
            f"`sparsity` must be in [0, 1). Received: sparsity={sparsity}.{hint}"
        )
    return float(sparsity)


def magnitude_mask(weight, sparsity):
    """Keeps the largest weights so that a fraction `sparsity` is dropped.

    Runs in linear time (selection, not a sort). A weight that is zero already is
    always dropped before one that is not, so masks of growing sparsity are nested.

    Args:
        weight: Float array of any shape.
        sparsity: Fraction dropped, in [0, 1), rounded to whole weights; one weight is
            always kept.

    Returns:
        Mask of `weight`'s shape, bool, True = keep. Ties keep the lower index.

    Raises:
        ValueError: If `sparsity` is outside [0, 1).

    Reference:
        Zhu & Gupta, "To prune, or not to prune", 2017. arXiv:1710.01878
    """
    dropped = round(check_sparsity(sparsity) * np.size(weight))
    keep = keep_highest(np.abs(np.asarray(weight)).ravel(), dropped)
    return keep.reshape(np.shape(weight))


def keep_highest(scores, dropped, sizes=1):
    """Drops the units with the lowest scores.

    Runs in linear time where all units are of one weight, with a sort elsewhere.

    Args:
        scores: Vector, one score for each unit; infinity for those that stay.
        dropped: Number of weights to drop. One unit is always kept.
        sizes: Weights of each unit, a vector; or 1.

    Returns:
        Bool vector, True = keep. Ties keep the lower index. Of units of several weights
        as many are dropped as come nearest to `dropped`.
    """
    # One unit stays in the smallest kernel: all zeros would be no mask but no layer.
    limit = min(np.count_nonzero(scores < np.inf), scores.size - 1)
    if np.ndim(sizes):
        order = np.argsort(-scores, kind="stable")[::-1]
        # Of float32 a sum of many sizes would stop growing.
        ends = np.cumsum(sizes[order], dtype="float64")
        count = np.count_nonzero(ends - sizes[order] / 2 <= dropped)
        keep = np.ones(scores.size, bool)
        keep[order[: min(count, limit)]] = False
        return keep
    dropped = min(dropped, limit)
    if dropped <= 0:
        return np.ones(scores.size, bool)
    threshold = np.partition(scores, dropped - 1)[dropped - 1]
    keep = scores > threshold
    ties = np.flatnonzero(scores == threshold)
    surplus = scores.size - dropped - np.count_nonzero(keep)
    keep[ties[:surplus]] = True
    return keep


def swap_lowest(scores, growth, zeros, swapped, sizes=1):
    """Drops the lowest scores beyond the zeros there are, and lets as many grow back.

    What is dropped may be what grows, if nothing else grows faster, as in the papers'
    own code.

    Args:
        scores: Vector, one score for each unit; lowest where it was dropped before.
        growth: Vector, finite: the highest that are not kept grow.
        zeros: Number of weights that are dropped before and after.
        swapped: Number of weights that make room.
        sizes: As of `keep_highest`.

    Returns:
        Bool vector, True = keep.

    Reference:
        Evci et al., "Rigging the Lottery", 2020, section 3 (3) and (4).
        arXiv:1911.11134
    """
    stay = keep_highest(scores, zeros + swapped, sizes)
    return keep_highest(np.where(stay, np.inf, growth), zeros, sizes)


def kept_zeros(weight, at_least=0.1):
    """Finds the mask that an earlier pruning left in the weights themselves.

    Trained weights are hardly ever exactly zero, so many exact zeros are a mask. A
    weight of nothing but zeros is an initial value, not a mask.

    Args:
        weight: Float array of any shape.
        at_least: Fraction of exact zeros from which they count as a mask.

    Returns:
        Mask of `weight`'s shape, bool, True = keep; or `None` if there is no mask.
    """
    keep = np.asarray(weight) != 0
    zeros = keep.size - np.count_nonzero(keep)
    if zeros == keep.size or zeros < at_least * keep.size:
        return None
    return keep
