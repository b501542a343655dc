"""How far one tensor is from another, summed up over batches.

Example:
    ```python
    found = difference(add(sums(x1, q1), sums(x2, q2)), step=0.1)
    print(found.sqnr_db)
    ```
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Difference:
    """How far a tensor `q` is from a tensor `x`, over all examples.

    Attributes:
        sqnr_db: Signal to quantization noise, `10 log10(sum x^2 / sum (x - q)^2)`;
            infinite where they are equal.
        max_error: Largest `|x - q|`.
        max_error_lsb: The same in steps of the grid of `q`.
    """

    sqnr_db: float
    max_error: float
    max_error_lsb: float


@dataclass(frozen=True)
class LayerError:
    """What rounding does to one tensor that is rounded.

    The tensor's *segment* is all that computes it from tensors rounded before, such as
    convolution, batch normalization and ReLU. `own`, `weights` and `output` compute it
    from those rounded tensors, so they say nothing of errors made further up.

    Attributes:
        name: The operation that ends the segment, or the model input.
        operations: Names of the operations of the segment, in order.
        kernels: Names of those with rounded weights.
        scale: Step of the grid.
        own: Segment without any rounding, against rounded weights and rounded output.
        weights: Segment without any rounding, against rounded weights alone; `None`
            if it has no weights.
        output: Rounded weights alone, against rounded weights and rounded output:
            resolution and clipping of the range.
        model: The whole model without rounding, against the model as it is.
        file: The model as it is, against the file; `None` if `file_tensor` is.
        file_tensor: Name of the tensor in the file, or `None`.
        file_note: Why there is none.
    """

    name: str
    operations: tuple
    kernels: tuple
    scale: float
    own: Difference
    weights: Difference | None
    output: Difference
    model: Difference
    file: Difference | None = None
    file_tensor: str | None = None
    file_note: str = ""

    @property
    def sqnr_db(self):
        """`own.sqnr_db`, by which layers are ranked."""
        return self.own.sqnr_db

    @property
    def max_error(self):
        """`own.max_error`."""
        return self.own.max_error


def sums(x, q):
    """`[sum x^2, sum (x - q)^2, max |x - q|]` of two tensors."""
    x, q = tf.cast(x, tf.float32), tf.cast(q, tf.float32)
    return tf.stack(
        [
            tf.reduce_sum(tf.square(x)),
            tf.reduce_sum(tf.square(x - q)),
            tf.reduce_max(tf.abs(x - q)),
        ]
    )


def add(total, more):
    """Joins the `sums` of two batches, arrays `(..., 3)`."""
    largest = np.maximum(total[..., 2:], more[..., 2:])
    return np.concatenate([total[..., :2] + more[..., :2], largest], axis=-1)


def difference(totals, step):
    """The `Difference` of `sums` on a grid of that step."""
    signal, noise, largest = map(float, totals)
    if noise == 0:
        sqnr = math.inf
    else:
        sqnr = 10 * math.log10(signal / noise) if signal > 0 else -math.inf
    return Difference(sqnr, largest, largest / step)


def decibels(found):
    """A `Difference` as text."""
    if found is None:
        return "-"
    value = found.sqnr_db
    return "equal" if value == math.inf else f"{value:.1f}"
