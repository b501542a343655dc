"""Affine (integer) quantization: `real = scale * (integer - zero_point)`.

Training, the exported constants and the TFLite file share one arithmetic.

Example:
    ```python
    on_grid = fake_quantize_weight(kernel, bits=8, axes=(-1,))
    ```

Reference:
    Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2017, eqs. 1 and 12. arXiv:1712.05877
"""

import tensorflow as tf

_SMALLEST_RANGE = 1e-9


def fake_quantize(x, low, high, *, bits=8):
    """Rounds `x` to the `2**bits` values of an asymmetric grid from `low` to `high`.

    Args:
        x: Float tensor, any shape.
        low: Scalar float, lowest value of the grid, at most 0. TensorFlow moves the
            grid by less than a step so that 0 lies on it.
        high: Scalar float, highest value of the grid, at least 0.
        bits: Width of the integers, 2 to 16.

    Returns:
        Tensor of `x`'s shape and dtype. The gradient passes where `x` is within the
        range (straight-through) and is zero outside.
    """
    y = tf.quantization.fake_quant_with_min_max_vars(
        tf.cast(x, tf.float32), low, high, num_bits=bits
    )
    return tf.cast(y, x.dtype)


def fake_quantize_weight(weight, *, bits=8, axes=(-1,)):
    """Rounds a weight to a symmetric grid, one scale for each index of `axes`.

    The grid is TFLite's for weights: integers from `-(2**(bits-1) - 1)` to
    `2**(bits-1) - 1`, zero at zero, `scale = max|w| / (2**(bits-1) - 1)`.

    Args:
        weight: Float tensor, any shape.
        bits: Width of the integers, 2 to 16.
        axes: Axes that have scales of their own: `(-1,)` for Dense and Conv2D, `(2, 3)`
            for DepthwiseConv2D, `()` for one scale for the whole weight.

    Returns:
        Tensor of `weight`'s shape and dtype; zeros stay zeros. The gradient reaches
        `weight` unchanged (straight-through).
    """
    rank = weight.shape.rank
    kept = {axis % rank for axis in axes}
    others = [axis for axis in range(rank) if axis not in kept]
    highest = 2 ** (bits - 1) - 1

    # TensorFlow's fake-quantization kernel is not used here: compiled by XLA it turns
    # zeros into tiny numbers, and it cuts the gradient of some of the largest weights.
    @tf.custom_gradient
    def rounded(w):
        w32 = tf.cast(w, tf.float32)
        limit = tf.reduce_max(tf.abs(w32), axis=others, keepdims=True)
        scale = tf.maximum(limit, _SMALLEST_RANGE) / highest
        return tf.cast(tf.floor(w32 / scale + 0.5) * scale, w.dtype), lambda dy: dy

    return rounded(weight)
