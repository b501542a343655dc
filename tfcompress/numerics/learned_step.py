"""Learned step size quantization (LSQ): the grid's step is trained with the weights.

Example:
    ```python
    step = tf.Variable(initial_step(kernel.numpy(), bits=4, axes=(-1,)))
    on_grid = fake_quantize_learned_step(kernel, step, bits=4, axes=(-1,))
    ```

Reference:
    Esser et al., "Learned Step Size Quantization", 2019. arXiv:1902.08153
"""

import numpy as np
import tensorflow as tf

from tfcompress.numerics import affine

SMALLEST_STEP = 1e-9
_CANDIDATES = 100


def initial_step(weight, *, bits=8, axes=(-1,)):
    """Step from which training starts, `2 * mean|w| / sqrt(2**(bits-1) - 1)`.

    The mean leaves out weights that are exactly zero, which pruning holds there; where
    a channel has no others it is the mean over the whole weight, or else 1.

    Args:
        weight: Float array, any shape.
        bits: Width of the integers, 2 to 16.
        axes: Axes that have steps of their own; `()` for one.

    Returns:
        Float32 array `(steps,)`, one for each index of `axes`, in memory order.

    Reference:
        Esser et al., 2019, section 2.1.
    """
    size = np.abs(np.asarray(weight, "float32"))
    others = tuple(affine.reduced_axes(size, axes))
    count = np.count_nonzero(size, axis=others)
    whole = size.sum() / np.count_nonzero(size) if size.any() else 1.0
    mean = np.where(count > 0, size.sum(axis=others) / np.maximum(count, 1), whole)
    step = 2 * mean / np.sqrt(affine.highest_integer(bits))
    return np.asarray(step, "float32").reshape(-1)


def least_error_step(weight, *, bits=8, axes=(-1,)):
    """Step with the least squared error of rounding, for weights that train no more.

    Of a hundred steps, from a hundredth of the one at which nothing is cut off up to
    that one.

    Args:
        weight: Float array, any shape.
        bits: Width of the integers, 2 to 16.
        axes: Axes that have steps of their own; `()` for one.

    Returns:
        Float32 array `(steps,)`, one for each index of `axes`, in memory order; that of
        `initial_step` where all weights are zero.
    """
    wide = np.asarray(weight, np.float64)
    others = tuple(affine.reduced_axes(wide, axes))
    highest = affine.highest_integer(bits)
    widest = np.abs(wide).max(axis=others, keepdims=True) / highest
    initial = initial_step(weight, bits=bits, axes=axes).reshape(widest.shape)
    best = np.where(widest > 0, widest, initial)
    least = np.full(widest.shape, np.inf)
    for share in np.arange(_CANDIDATES, 0, -1) / _CANDIDATES:
        step = np.where(widest > 0, widest * share, initial)
        rounded = np.clip(np.round(wide / step), -highest, highest) * step
        error = np.square(wide - rounded).sum(axis=others, keepdims=True)
        best, least = np.where(error < least, step, best), np.minimum(error, least)
    return best.astype("float32").reshape(-1)


def fake_quantize_learned_step(weight, step, *, bits=8, axes=(-1,)):
    """Rounds a weight to multiples of `step`, cut to a symmetric grid of `bits`.

    With `q = 2**(bits-1) - 1` it is `round(clip(w / step, -q, q)) * step`. The paper
    lets the integers go to `-q - 1`; TFLite's weights do not.

    Args:
        weight: Float tensor, any shape.
        step: Float tensor `(steps,)`, one for each index of `axes`. Its absolute value
            is used, at least 1e-9: an update past zero turns back.
        bits: Width of the integers, 2 to 16: a whole number or a scalar float tensor of
            one. From 0 down `weight` is returned as it is.
        axes: Axes that have steps of their own; `()` for one.

    Returns:
        Tensor of `weight`'s shape and dtype; zeros stay zeros. The gradient passes to
        `weight` unchanged within the range and is zero where it is cut (eq. 5). That of
        `step` is eq. 3 times `1 / sqrt(n * q)`, `n` being the weights of a step.

    Raises:
        ValueError: If `step` does not have one value for each index of `axes`.

    Reference:
        Esser et al., 2019, eqs. 1 to 5 and section 2.2. arXiv:1902.08153
    """
    others = affine.reduced_axes(weight, axes)
    highest = affine.highest_integer(bits)
    count = float(np.prod([weight.shape[axis] for axis in others]))
    gradient_scale = 1 / tf.sqrt(count * tf.cast(highest, tf.float32))
    step = tf.maximum(tf.abs(tf.cast(step, tf.float32)), SMALLEST_STEP)

    @tf.custom_gradient
    def rounded(w, s):
        ratio = tf.cast(w, tf.float32) / s
        inside = tf.abs(ratio) < highest
        integers = tf.floor(tf.clip_by_value(ratio, -highest, highest) + 0.5)

        def gradient(dy):
            by_step = tf.where(inside, integers - ratio, integers) * gradient_scale
            by_step *= tf.cast(dy, tf.float32)
            return (
                tf.where(inside, dy, tf.zeros_like(dy)),
                tf.reduce_sum(by_step, axis=others, keepdims=True),
            )

        return tf.cast(integers * s, w.dtype), gradient

    on_grid = rounded(weight, affine.along_axes(step, weight, axes))
    return affine.while_active(bits, on_grid, weight)
