"""Which weights to keep.

Example:
    ```python
    mask = magnitude_mask(kernel, sparsity=0.8)   # bool, True = keep
    ```
"""

import numpy as np

# Weights looked at together, so that copies stay small.
_CHUNK = 1 << 20
_SIGN, _MAGNITUDE = np.uint32(1 << 31), np.uint32((1 << 31) - 1)


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

    Runs in linear time (selection, not a sort).

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
        keep = _keep_highest_of_sizes(np.asarray(scores, "float32"), dropped, sizes)
        if scores.size - np.count_nonzero(keep) > limit:
            keep[:] = scores == np.inf
            keep[np.argmax(scores)] = True
        return keep
    dropped = min(dropped, limit)
    if dropped <= 0:
        return np.ones(scores.size, bool)
    threshold = _nth_lowest(scores, dropped - 1)
    keep = scores > threshold
    surplus = scores.size - dropped - np.count_nonzero(keep)
    for start in range(0, scores.size, _CHUNK):
        if not surplus:
            break
        ties = np.flatnonzero(scores[start : start + _CHUNK] == threshold)[:surplus]
        keep[start + ties] = True
        surplus -= ties.size
    return keep


def _keep_highest_of_sizes(scores, dropped, sizes):
    """`keep_highest` of float32 scores for units of several weights."""
    if sizes.sum(dtype="float64") <= dropped:
        return np.zeros(scores.size, bool)
    threshold, below = _value_at(scores, dropped, sizes)
    keep = scores >= threshold
    # Of those that are equal the last go first, each if that comes nearer.
    ties = np.flatnonzero(scores == threshold)[::-1]
    ends = below + np.cumsum(sizes[ties], dtype="float64")
    keep[ties[ends - sizes[ties] / 2 <= dropped]] = False
    return keep


def _nth_lowest(values, n):
    """The value that would stand at index `n` if `values` were sorted."""
    if values.dtype != np.float32:
        return np.partition(values, n)[n]
    return _value_at(values, n)[0]


def _value_at(values, n, sizes=None):
    """The value that would cover position `n` if float32 values were sorted.

    Counted out over the upper, then the lower half of the bits: linear whatever the
    values, where `np.partition` takes twenty times as long for a vector that is mostly
    one number, as the scores of a pruned kernel are.

    Args:
        values: Vector.
        n: Position, below the sum of sizes.
        sizes: How many positions each value covers, a vector; one each for `None`.

    Returns:
        `(value, below)`: the value, and how many positions lower values cover.
    """
    upper, below = _bucket_at(values, n, sizes, 0, lambda keys: (keys >> 16, ...))
    lower, below = _bucket_at(
        values,
        n,
        sizes,
        below,
        lambda keys: (keys & 0xFFFF, keys >> 16 == upper),
    )
    key = np.uint32(int(upper) << 16 | int(lower))
    bits = key & _MAGNITUDE if key & _SIGN else ~key
    return np.array([bits], "uint32").view("float32")[0], below


def _bucket_at(values, n, sizes, below, split):
    """The bucket that covers position `n`, and how many positions come before it."""
    counts = np.zeros(1 << 16, "float64")
    for start in range(0, values.size, _CHUNK):
        buckets, chosen = split(_ordered_bits(values[start : start + _CHUNK]))
        counts += np.bincount(
            buckets[chosen],
            None if sizes is None else sizes[start : start + _CHUNK][chosen],
            minlength=counts.size,
        )
    ends = below + np.cumsum(counts)
    bucket = np.searchsorted(ends, n, side="right")
    return bucket, ends[bucket] - counts[bucket]


def _ordered_bits(values):
    """The bits of float32 as numbers that rise with the values; -0 is 0."""
    bits = (values + np.float32(0)).view("uint32")
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


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
