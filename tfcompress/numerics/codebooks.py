"""Weights that share few values: codebooks, nearest values, gradients of both.

A codebook of `clusters` values holds `clusters - 1` centroids and, always, zero: zeros
of a pruned weight stay zeros. Centroids are kept flat, one row after the other, and in
no particular order.

Example:
    ```python
    centroids = initial_centroids(kernel, clusters=16)
    shared = share_values(kernel, centroids)   # 16 different values
    ```

Reference:
    Han et al., "Deep Compression", 2015, section 3. arXiv:1510.00149
"""

import functools
import math
import platform
import sys

import numpy as np
import tensorflow as tf

from tfcompress.numerics.clipped_gradient import is_compiled

GRADIENTS = ("mean", "sum", None)
# Below it a centroid is zero: half of it is no normal number any more.
_SMALLEST = 1e-30
# Clusters up to which XLA, which compares each value with each border, is faster.
_COMPILED_UNTIL = 64


def share_values(weight, centroids, *, axes=(), gradient="mean", threshold=None):
    """Replaces each weight by the nearest value of its codebook.

    Runs in `weights * log2(clusters)` time, with memory for an index of each weight and
    none for each pair of weight and cluster.

    Args:
        weight: Float tensor, any shape.
        centroids: Float tensor `(codebooks * (clusters - 1),)`, the values beside zero
            of one codebook after the other.
        axes: Axes of `weight` that have codebooks of their own; `()` for one.
        gradient: What a centroid gets of the gradients of its weights: their `"mean"`,
            with which it moves as they do, or their `"sum"`, as in the paper; `None`
            for nothing.
        threshold: Scalar; weights that are smaller in size stay as they are. `None`
            for 0.

    Returns:
        Tensor of `weight`'s shape and dtype. Zeros stay zeros; in the middle between
        two values the lower counts. The gradient reaches `weight` unchanged
        (straight-through).

    Reference:
        Han et al., 2015, eq. 3 for the sum; weights that join from the largest down as
        in Zhou et al., "Incremental Network Quantization", 2017. arXiv:1702.03044
    """
    weight = tf.convert_to_tensor(weight)
    view = _Rows(weight.shape, axes)
    book = tf.reshape(tf.cast(centroids, tf.float32), (view.rows, -1))
    clusters = book.shape[-1] + 1
    limit = () if threshold is None else (threshold,)

    @tf.custom_gradient
    def shared(weight, book):
        rows = view.of(tf.cast(weight, tf.float32))
        book, order = _in_order(book)
        values, index = _run(_nearest, clusters, rows, book, *limit)

        def backward(dy):
            if gradient is None:
                return dy, tf.zeros_like(book[:, 1:])
            gather = functools.partial(
                _means if gradient == "mean" else _totals, count=math.prod(book.shape)
            )
            rows = view.of(tf.cast(dy, tf.float32))
            found = tf.reshape(_run(gather, clusters, rows, index), book.shape)
            # In the order in which they are stored, where zero comes first.
            stored = tf.argsort(order, axis=-1)
            return dy, tf.gather(found, stored, batch_dims=1)[:, 1:]

        return tf.cast(view.back(values), weight.dtype), backward

    return shared(weight, book)


class _Rows:
    """A weight as a matrix with a row for each codebook."""

    def __init__(self, shape, axes):
        self.shape = tuple(shape)
        kept = sorted(axis % len(self.shape) for axis in axes)
        self.order = kept + [a for a in range(len(self.shape)) if a not in kept]
        self.rows = math.prod(self.shape[axis] for axis in kept)
        self._moves = self.order != sorted(self.order)

    def of(self, x):
        if self._moves:
            x = tf.transpose(x, self.order)
        return tf.reshape(x, (self.rows, -1))

    def back(self, rows):
        x = tf.reshape(rows, [self.shape[axis] for axis in self.order])
        return tf.transpose(x, np.argsort(self.order)) if self._moves else x


def _run(function, clusters, *tensors):
    """Runs a function of tensors, fused by XLA within a graph that it does not compile.

    One pass over the weights in place of several costs a third of the time. Outside
    graphs compiling would take longer than computing, and with many clusters XLA's
    search, which compares each value with each border, is the slower one.
    """
    metal = sys.platform == "darwin" and "arm" in platform.processor().lower()
    if tf.inside_function() and clusters <= _COMPILED_UNTIL and not metal:
        return tf.function(function, jit_compile=True, autograph=False)(*tensors)
    return function(*tensors)


def _in_order(book):
    """The values in rising order with zero among them, and that order."""
    tiny = tf.abs(book) < _SMALLEST
    book = tf.where(tiny, tf.zeros_like(book), book)
    # Zero comes first, so that it stays first among equals.
    book = tf.pad(book, [[0, 0], [1, 0]])
    order = tf.argsort(book, axis=-1, stable=True)
    return tf.gather(book, order, batch_dims=1), order


def _nearest(rows, book, threshold=None):
    """The nearest values and their numbers, counted through all codebooks."""
    # Halved before they are added, which never overflows.
    borders = book[:, 1:] * 0.5 + book[:, :-1] * 0.5
    index = _search(borders, rows)
    if book.shape[0] > 1:
        index += tf.range(book.shape[0])[:, None] * book.shape[-1]
    values = tf.gather(tf.reshape(book, (-1,)), index)
    if threshold is None:
        return values, index
    free = tf.abs(rows) < threshold
    # The free ones are members of nothing.
    index = tf.where(free, math.prod(book.shape), index)
    return tf.where(free, rows, values), index


def _search(borders, rows):
    """How many borders of its row each value is above."""
    if not is_compiled() or borders.shape[-1] < _COMPILED_UNTIL:
        return tf.searchsorted(borders, rows)
    depth = borders.shape[-1].bit_length()
    width = 2**depth - 1
    padding = [[0, 0], [0, width - borders.shape[-1]]]
    borders = tf.pad(borders, padding, constant_values=np.inf)
    first = tf.range(borders.shape[0])[:, None] * width
    borders = tf.reshape(borders, (-1,))
    found = tf.zeros_like(rows, tf.int32)
    for step in (2**level for level in reversed(range(depth))):
        found += tf.where(rows > tf.gather(borders, first + found + step - 1), step, 0)
    return found


def _totals(dy, index, count):
    """Sum of what the members of each value have; what is free comes last."""
    flat = tf.reshape(dy, (-1,)), tf.reshape(index, (-1,))
    return tf.math.unsorted_segment_sum(*flat, count + 1)[:count]


def _means(dy, index, count):
    """The same, divided by the number of members."""
    number = _totals(tf.ones_like(dy), index, count)
    return _totals(dy, index, count) / tf.maximum(number, 1.0)
