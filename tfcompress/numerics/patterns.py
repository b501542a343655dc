"""Which weights go together when a kernel is pruned.

A pattern turns the scores of weights into scores of *units*, of which the lowest are
dropped, and spreads what is kept of them over the weights again.

Example:
    ```python
    pattern = parse("2:4")
    units = pattern.units(scores, alive)             # one score for each unit
    keep = masks.keep_highest(units, dropped)
    mask = pattern.spread(keep, scores.shape)        # bool, True = keep
    ```
"""

import re

import numpy as np

# Below every score; finite, so that it is not taken for what must stay.
_LOWEST = np.float32(-1e30)


class Unstructured:
    """Every weight by itself."""

    highest_sparsity = 1.0

    def units(self, scores, alive):
        """Scores of the units, a vector; lowest where nothing is left to drop.

        Args:
            scores: Float array, one score for each weight.
            alive: Bool array of its shape: which weights were not dropped before.
        """
        return np.where(alive, scores, _LOWEST).ravel()

    def sizes(self, shape):
        """How many weights each unit has: a vector, or one number for all."""
        return 1

    def spread(self, keep, shape):
        """Mask of the weights from one of the units."""
        return keep.reshape(shape)


class NOfM(Unstructured):
    """At most `n` of each `m` weights in a row of the input axis stay.

    The input axis is the one before the last, along which a product is summed up; a
    group that the axis ends in is shorter and keeps `n` too. Until the schedule ends
    fewer are dropped: the lowest of those that will go.

    Args:
        n: Weights that stay.
        m: Weights of a group.

    Reference:
        Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
        Scratch", 2021. arXiv:2102.04010
    """

    def __init__(self, n, m):
        if not 0 < n < m:
            raise ValueError(
                f"An N:M pattern keeps 0 < N < M of M weights. Received: {n}:{m}"
            )
        self.n, self.m = n, m
        self.highest_sparsity = 1 - n / m

    def units(self, scores, alive):
        """Scores of the weights; those that stay have infinity."""
        rows = np.moveaxis(np.where(alive, scores, _LOWEST), -2, -1)
        length = rows.shape[-1]
        groups = -(-length // self.m)
        filled = np.full((*rows.shape[:-1], groups * self.m), -np.inf, rows.dtype)
        filled[..., :length] = rows
        groups = filled.reshape(-1, self.m)
        # Stable, so that ties keep the lower index.
        best = np.argsort(-groups, axis=1, kind="stable")[:, : self.n]
        np.put_along_axis(groups, best, np.inf, axis=1)
        rows = groups.reshape(filled.shape)[..., :length]
        return np.moveaxis(rows, -1, -2).ravel()


class Blocks:
    """Rectangles of the kernel's matrix, which has a column for each output.

    The matrix is the kernel with all axes but the last made one. Blocks at the far
    edges are smaller where the sides do not divide it.

    Args:
        rows: Weights along the inputs.
        columns: Weights along the outputs.

    Reference:
        Gale et al., "The State of Sparsity in Deep Neural Networks", 2019, and Narang
        et al., "Block-Sparse Recurrent Neural Networks", 2017. arXiv:1711.02782
    """

    highest_sparsity = 1.0

    def __init__(self, rows, columns):
        if min(rows, columns) < 1:
            raise ValueError(
                f"The sides of a block are 1 or more. Received: {(rows, columns)}"
            )
        self.rows, self.columns = rows, columns

    def units(self, scores, alive):
        """Mean scores of the blocks; what was dropped before counts as nothing."""
        means = self._sums(np.where(alive, scores, 0)) / self.sizes(scores.shape)
        left = self._sums(alive.astype("float32")) > 0
        return np.where(left, means, _LOWEST)

    def sizes(self, shape):
        """Weights of each block."""
        return self._sums(np.ones(shape, "float32"))

    def spread(self, keep, shape):
        """Mask of the weights from one of the blocks."""
        height, width = _matrix_shape(shape)
        keep = keep.reshape(-(-height // self.rows), -1)
        keep = np.repeat(np.repeat(keep, self.rows, axis=0), self.columns, axis=1)
        return keep[:height, :width].reshape(shape)

    def _sums(self, values):
        matrix = values.reshape(_matrix_shape(values.shape))
        starts = [
            np.arange(0, n, side)
            for n, side in zip(matrix.shape, (self.rows, self.columns), strict=True)
        ]
        sums = np.add.reduceat(matrix, starts[0], axis=0)
        return np.add.reduceat(sums, starts[1], axis=1).ravel()


class Slices:
    """Everything at one index of an axis: whole filters, or whole input channels.

    The score of a slice is the mean of its weights' scores; with magnitude that ranks
    filters by their L1 norm, as the paper does.

    Args:
        axis: -1 for output channels, -2 for input channels.

    Reference:
        Li et al., "Pruning Filters for Efficient ConvNets", 2016, section 3.1.
        arXiv:1608.08710
    """

    highest_sparsity = 1.0

    def __init__(self, axis):
        self.axis = axis

    def units(self, scores, alive):
        """Mean scores of the slices; what was dropped before counts as nothing."""
        rows = self._rows(np.where(alive, scores, 0))
        # Of float32 a mean of many would lose ties.
        means = rows.mean(axis=1, dtype="float64").astype("float32")
        return np.where(self._rows(alive).any(axis=1), means, _LOWEST)

    def sizes(self, shape):
        """Weights of each slice."""
        count = shape[self.axis]
        return np.full(count, np.prod(shape) // count, "float32")

    def spread(self, keep, shape):
        """Mask of the weights from one of the slices."""
        sides = [1] * len(shape)
        sides[self.axis] = -1
        return np.broadcast_to(keep.reshape(sides), shape).copy()

    def _rows(self, values):
        return np.moveaxis(values, self.axis, 0).reshape(values.shape[self.axis], -1)


_SLICES = {"filter": -1, "channel": -2}


def _matrix_shape(shape):
    return int(np.prod(shape[:-1])), shape[-1]


def parse(pattern):
    """The pattern that a user names.

    Args:
        pattern: `None` (weights one by one), `"2:4"` (at most two of four weights in a
            row stay), `(rows, columns)` (blocks), `"filter"` or `"channel"` (whole
            output or input channels).

    Raises:
        ValueError: If it is none of these.
    """
    if pattern is None:
        return Unstructured()
    if isinstance(pattern, str) and pattern in _SLICES:
        return Slices(_SLICES[pattern])
    found = isinstance(pattern, str) and re.fullmatch(r"(\d+):(\d+)", pattern)
    if found:
        return NOfM(int(found[1]), int(found[2]))
    sides = isinstance(pattern, (tuple, list)) and [
        side for side in pattern if isinstance(side, int) and not isinstance(side, bool)
    ]
    if sides and len(sides) == len(pattern) == 2:
        return Blocks(*sides)
    raise ValueError(
        "`pattern` must be None, 'N:M' such as '2:4', the sides of a block such as "
        f"(4, 1), 'filter' or 'channel'. Received: pattern={pattern!r}"
    )
