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

import numpy as np
import tensorflow as tf

from tfcompress.numerics.branch import cheapest_cond, values_of_example
from tfcompress.numerics.clipped_gradient import is_compiled, pass_within

_SMALLEST_RANGE = 1e-9
_SMALLEST_FACTOR = 1e-30
_ANY = float("inf")


def fake_quantize(x, low, high, *, bits=8, active=True, relu=None):
    """Rounds `x` to the `2**bits` values of an asymmetric grid from `low` to `high`.

    Args:
        x: Float tensor, any shape.
        low: Scalar float, lowest value of the grid, at most 0. TensorFlow moves the
            grid by less than a step so that 0 lies on it.
        high: Scalar float, highest value of the grid, at least 0.
        bits: Width of the integers, 2 to 16.
        active: Whether to round, bool or scalar bool tensor; if not, `x` is returned.
        relu: The `Relu` whose output `x` is, to be computed together with it, which
            costs less; the gradient goes to what it read, and none to `x`.

    Returns:
        Tensor of `x`'s shape and dtype. The gradient passes where `x` is within the
        range (straight-through) and is zero outside; a range of nothing but 0, of a
        branch that starts at zero, passes all of it.
    """
    x = tf.convert_to_tensor(x)
    active = tf.convert_to_tensor(active)
    low, high = (tf.convert_to_tensor(bound, tf.float32) for bound in (low, high))
    compiled = is_compiled()

    def rounded(x):
        y = tf.quantization.fake_quant_with_min_max_vars(
            tf.cast(x, tf.float32), low, high, num_bits=bits
        )
        return tf.cast(y, x.dtype)

    def rounded_if_active(x):
        if compiled:
            # XLA computes it in one loop with what is before and behind it.
            return tf.where(active, rounded(x), x)
        size = values_of_example(x)
        return cheapest_cond(size, active, lambda: rounded(x), lambda: x)

    def with_relu(source):
        return tf.cond(
            active & (low >= 0) & (high <= relu.highest),
            lambda: rounded(source),
            lambda: rounded_if_active(relu.function(source)),
        )

    @tf.custom_gradient
    def straight_through_range(x):
        def gradient(dy):
            cuts = active & (high > low)
            bounds = tf.where(cuts, low, -_ANY), tf.where(cuts, high, _ANY)
            if relu is not None:
                bounds = relu.slope_range(*bounds)
            return pass_within(dy, x, *bounds, compiled=compiled)

        return rounded_if_active(x) if relu is None else with_relu(x), gradient

    if relu is None:
        return straight_through_range(x)
    y = straight_through_range(relu.source)
    y.set_shape(x.shape)
    return y


def fake_quantize_weight(
    weight, *, bits=8, axes=(-1,), symmetric=True, power_of_two=False
):
    """Rounds a weight to an integer grid, one scale for each index of `axes`.

    The symmetric grid is TFLite's for weights: integers from `-(2**(bits-1) - 1)` to
    `2**(bits-1) - 1`, zero at zero, `scale = max|w| / (2**(bits-1) - 1)`. The
    asymmetric one has `2**bits` values from `min(w, 0)` to `max(w, 0)`, moved by less
    than a step so that 0 lies on it.

    Args:
        weight: Float tensor, any shape.
        bits: Width of the integers: 2 to 16, 2 to 8 for an asymmetric grid; a whole
            number or a scalar float tensor of one. From 0 down `weight` is returned as
            it is.
        axes: Axes that have scales of their own: `(-1,)` for Dense and Conv2D, `(2, 3)`
            for DepthwiseConv2D, `()` for one scale for the whole weight.
        symmetric: Whether the grid is symmetric.
        power_of_two: Whether the scale is rounded up to the next power of two, so that
            nothing is cut and scaling is a shift.

    Returns:
        Tensor of `weight`'s shape and dtype; zeros stay zeros. The gradient reaches
        `weight` unchanged (straight-through).

    Reference:
        Jacob et al., 2017, eqs. 1 and 12; powers of two as in Jain et al., "Trained
        Quantization Thresholds", 2019, section 3. arXiv:1903.08066
    """
    others = reduced_axes(weight, axes)
    highest = highest_integer(bits)
    # TensorFlow's fake-quantization kernel is not used here: compiled by XLA it turns
    # zeros into tiny numbers, and it cuts the gradient of some of the largest weights.
    w = tf.cast(tf.stop_gradient(weight), tf.float32)
    if symmetric:
        scale = _scale(_largest_size(w, others), highest, power_of_two)
        rounded = _nearest(w / scale) * scale
    else:
        low = tf.minimum(tf.reduce_min(w, axis=others, keepdims=True), 0)
        high = tf.maximum(tf.reduce_max(w, axis=others, keepdims=True), 0)
        levels = 2 * highest + 1
        scale = _scale(high - low, levels, power_of_two)
        # Cut, for where both ends lie half a step off float32 may round both outward.
        integers = tf.minimum(_nearest(w / scale), _nearest(low / scale) + levels)
        rounded = integers * scale
    return straight_through(weight, rounded, bits=bits)


def fake_quantize_folded_weight(
    weight, factor, *, bits=8, axes=(), channel_axes=(-1,), power_of_two=False
):
    """Rounds a weight so that `weight * factor` lies on a symmetric integer grid.

    For a kernel with the batch normalization behind it, `factor` is
    `gamma / sqrt(moving_variance + epsilon)`: the file holds the product, and one scale
    for all channels, or one that is a power of two, must fit the product, not the
    kernel.

    Args:
        weight: Float tensor, any shape.
        factor: What each output channel is multiplied by, float tensor `(channels,)`.
            A channel whose factor is zero is nothing in the product: it takes no part
            in the scale and is rounded as if its factor were one.
        bits: As for `fake_quantize_weight`, symmetric.
        axes: Axes of the product that have scales of their own; `()` for one scale.
        channel_axes: Axes of `weight` that are the output channels: `(-1,)` for Dense
            and Conv2D, `(-2, -1)` for DepthwiseConv2D.
        power_of_two: As for `fake_quantize_weight`.

    Returns:
        Tensor of `weight`'s shape and dtype; zeros stay zeros. The gradient reaches
        `weight` unchanged (straight-through); none reaches `factor`.

    Raises:
        ValueError: If `factor` does not have one value for each channel.

    Reference:
        Jacob et al., 2017, section 3.2 and eq. 14. arXiv:1712.05877
    """
    w, factor = (tf.cast(tf.stop_gradient(x), tf.float32) for x in (weight, factor))
    factor = along_axes(factor, weight, channel_axes)
    limit = _largest_size(w * factor, reduced_axes(weight, axes))
    scale = _scale(limit, highest_integer(bits), power_of_two)
    # Below this float32 would divide by a number that XLA takes for zero.
    divisor = tf.where(tf.abs(factor) < _SMALLEST_FACTOR, 1.0, factor)
    rounded = _nearest(w * divisor / scale) * scale / divisor
    return straight_through(weight, rounded, bits=bits)


def straight_through(weight, rounded, *, bits):
    """Goes forward as `rounded` and backward as if nothing had been done to `weight`.

    Args:
        weight: Float tensor.
        rounded: Float tensor of its shape; it gets no gradient.
        bits: Number or scalar tensor. From 0 down `weight` goes forward too.

    Returns:
        Tensor of `weight`'s shape and dtype.

    Reference:
        Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons
        for Conditional Computation", 2013, section 4. arXiv:1308.3432
    """
    rounded = tf.cast(rounded, weight.dtype)
    return _with_gradient_of(weight, while_active(bits, rounded, weight))


@tf.custom_gradient
def _with_gradient_of(weight, value):
    return tf.identity(value), lambda dy: (dy, None)


def while_active(bits, active, inactive):
    """`active` where `bits` is above 0, else `inactive`; both tensors of one dtype."""
    if isinstance(bits, int):
        return active if bits > 0 else inactive
    return cheapest_cond(
        active.shape.num_elements(),
        tf.convert_to_tensor(bits) > 0,
        lambda: tf.identity(active),
        lambda: inactive,
    )


def highest_integer(bits):
    """Highest integer of the symmetric grid, `2**(bits - 1) - 1`, at least 1.

    Args:
        bits: Whole number, or scalar float tensor of one.

    Returns:
        Number, or scalar float32 tensor.
    """
    if isinstance(bits, int):
        return max(2 ** (bits - 1) - 1, 1)
    # Rounded, for a device may compute powers less than exactly.
    return tf.maximum(tf.round(tf.pow(2.0, tf.cast(bits, tf.float32) - 1)) - 1, 1)


def reduced_axes(weight, axes):
    """The axes of `weight` that share a scale: all but `axes`, as a list."""
    rank = len(weight.shape)
    kept = {axis % rank for axis in axes}
    return [axis for axis in range(rank) if axis not in kept]


def along_axes(values, weight, axes):
    """Reshapes one value for each index of `axes` so that it broadcasts to `weight`.

    Args:
        values: Tensor with as many elements as `axes` have indices, in the order of
            `weight`'s memory.
        weight: Tensor or array, any shape.
        axes: Axes of `weight`; `()` for a single value.

    Raises:
        ValueError: If the number of elements is another.
    """
    others = reduced_axes(weight, axes)
    shape = [1 if axis in others else n for axis, n in enumerate(weight.shape)]
    if np.prod(values.shape) != np.prod(shape):
        raise ValueError(
            f"A weight of shape {tuple(weight.shape)} has {np.prod(shape):g} indices "
            f"along the axes {tuple(axes)}, so it needs as many values. Received: "
            f"values of shape {tuple(values.shape)}. Pass the axes that the values "
            "belong to."
        )
    return tf.reshape(values, shape)


def _largest_size(x, others):
    """`max |x|`, without writing |x|."""
    high = tf.reduce_max(x, axis=others, keepdims=True)
    return tf.maximum(high, -tf.reduce_min(x, axis=others, keepdims=True))


def _nearest(x):
    return tf.floor(x + 0.5)


def _scale(width, steps, power_of_two=False):
    """Step of a grid that spans `width`, at least `_SMALLEST_RANGE`, in `steps`."""
    scale = tf.maximum(width, _SMALLEST_RANGE) / steps
    return next_power_of_two(scale) if power_of_two else scale


def next_power_of_two(x):
    """The smallest power of two that is not below `x`, positive float32.

    By the bits of the number, exponent and fraction: logarithms are not exact.
    """
    fraction = 2**23 - 1
    rounded_up = tf.bitcast(x, tf.int32) + fraction
    return tf.bitcast(tf.bitwise.bitwise_and(rounded_up, ~fraction), tf.float32)
