"""Weights of two or three levels: a sign, a scale and, for ternary, zero.

Example:
    ```python
    ternarize(kernel, axes=(-1,))   # -scale, 0 and scale, one scale for each channel
    binarize(kernel, axes=(-1,))    # -scale and scale
    ```
"""

import tensorflow as tf

from tfcompress.numerics.affine import reduced_axes, straight_through

_THRESHOLD = 0.7


def ternarize(weight, *, bits=2, axes=(-1,)):
    """Rounds a weight to `-scale`, 0 and `scale`, one scale for each index of `axes`.

    A weight is nonzero where it is larger than `0.7 * mean|w|`; the scale is the mean
    of those. The paper has one scale for a layer (`axes=()`).

    Args:
        weight: Float tensor, any shape.
        bits: Whether to round at all: number or scalar tensor; from 0 down `weight` is
            returned as it is.
        axes: Axes that have thresholds and scales of their own; `()` for one.

    Returns:
        Tensor of `weight`'s shape and dtype; zeros stay zeros. The gradient reaches
        `weight` unchanged (straight-through).

    Reference:
        Li & Liu, "Ternary Weight Networks", 2016, eqs. 3 to 6. arXiv:1605.04711
    """
    others = reduced_axes(weight, axes)
    w = tf.cast(tf.stop_gradient(weight), tf.float32)
    size = tf.abs(w)
    threshold = _THRESHOLD * tf.reduce_mean(size, axis=others, keepdims=True)
    nonzero = size > threshold
    rounded = tf.where(nonzero, tf.sign(w) * _mean_where(nonzero, size, others), 0.0)
    return straight_through(weight, rounded, bits=bits)


def binarize(weight, *, bits=2, axes=(-1,)):
    """Rounds a weight to `-scale` and `scale`, one scale for each index of `axes`.

    The scale is `mean|w|`, as in XNOR-Net. We differ in the zeros, which pruning means:
    they stay zeros (`sign(0) = 0`) and the mean is of the others. BinaryConnect also
    clips the latent weights to [-1, 1]; that is for a constraint to do.

    Args:
        weight: Float tensor, any shape.
        bits: Whether to round at all: number or scalar tensor; from 0 down `weight` is
            returned as it is.
        axes: Axes that have scales of their own; `()` for one.

    Returns:
        Tensor of `weight`'s shape and dtype; zeros stay zeros. The gradient reaches
        `weight` unchanged (straight-through).

    Reference:
        Courbariaux et al., "BinaryConnect", 2015, eq. 1. arXiv:1511.00363; Rastegari et
        al., "XNOR-Net", 2016, eq. 6. arXiv:1603.05279
    """
    others = reduced_axes(weight, axes)
    w = tf.cast(tf.stop_gradient(weight), tf.float32)
    rounded = tf.sign(w) * _mean_where(w != 0, tf.abs(w), others)
    return straight_through(weight, rounded, bits=bits)


def _mean_where(chosen, x, others):
    """Mean of the elements chosen, 0 where there are none."""
    total = tf.reduce_sum(tf.where(chosen, x, 0.0), axis=others, keepdims=True)
    count = tf.reduce_sum(tf.cast(chosen, tf.float32), axis=others, keepdims=True)
    return tf.math.divide_no_nan(total, count)
