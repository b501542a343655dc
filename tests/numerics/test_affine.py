"""Affine quantization against plain numpy rounding.

Tolerances: both sides round to the same integer, so they differ by float32 arithmetic
alone, a few units in the last place of the largest grid value: 1e-6 of the range.
"""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.affine import fake_quantize, fake_quantize_weight


def _asymmetric(x, low, high, bits):
    """Jacob et al., eqs. 1 and 12, with the zero point moved to a whole number."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    zero_point = min(max(np.floor(-low / scale + 0.5), 0), levels)
    integers = np.floor(np.asarray(x, "float64") / scale + zero_point + 0.5)
    return (np.clip(integers, 0, levels) - zero_point) * scale


def _symmetric(weight, bits, kept):
    """`scale * round(w / scale)`, one scale for each index of the axes `kept`."""
    w = np.asarray(weight, "float64")
    others = tuple(a for a in range(w.ndim) if a not in {k % w.ndim for k in kept})
    scale = np.abs(w).max(axis=others, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.floor(w / scale + 0.5) * scale


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_four_values_worked_by_hand():
    # From 0 to 3 in 2 bits the grid is 0, 1, 2, 3.
    y = fake_quantize(tf.constant([-1.0, 0.4, 1.6, 9.0]), 0.0, 3.0, bits=2)
    assert y.numpy().tolist() == [0.0, 0.0, 2.0, 3.0]


def test_grid_is_moved_so_that_zero_lies_on_it():
    # 2 bits from -0.4 to 2.6: the step is 1, the zero point 0.4, nudged to 0.
    y = fake_quantize(tf.constant([-0.4, 0.0, 0.7, 2.6]), -0.4, 2.6, bits=2)
    # 1e-6: 2.6 and -0.4 are not exact in float32.
    np.testing.assert_allclose(y, [0.0, 0.0, 1.0, 3.0], atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("low, high", [(0.0, 6.0), (-1.3, 2.9), (-5.0, 0.0)])
def test_activations_round_as_numpy_does(low, high, bits):
    x = 4 * _normal(1000)
    y = fake_quantize(tf.constant(x), low, high, bits=bits).numpy()
    step = (high - low) / (2**bits - 1)
    error = np.abs(y - _asymmetric(x, low, high, bits))
    if bits == 16:
        # A step of 16 bits is 1e-4 of the values: where numpy's float64 lies within
        # float32's rounding error of the middle, the neighbour is as right.
        assert np.mean(error > 1e-6 * (high - low)) < 0.01
        assert error.max() <= step * 1.01
    else:
        assert error.max() <= 1e-6 * (high - low)


def test_zero_stays_exactly_zero_in_activations():
    y = fake_quantize(tf.zeros(3), -1.2345, 3.21)
    assert y.numpy().tolist() == [0.0, 0.0, 0.0]


def test_activation_rounding_is_idempotent():
    once = fake_quantize(tf.constant(_normal(1000)), -1.1, 1.7)
    np.testing.assert_array_equal(fake_quantize(once, -1.1, 1.7), once)


def test_gradient_is_one_inside_the_range_and_zero_outside():
    x = tf.constant([-2.0, -0.9, 0.0, 0.5, 1.9, 2.5])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = fake_quantize(x, -1.0, 2.0)
    assert tape.gradient(y, x).numpy().tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "shape, axes",
    [
        ((30, 7), (-1,)),
        ((3, 3, 5, 8), (-1,)),
        ((3, 3, 5, 2), (-2, -1)),
        ((3, 3, 5, 2), (2, 3)),
        ((3, 3, 5, 2), (3, 2)),
        ((4, 6, 5), (1,)),
        ((4, 6, 5), (0,)),
        ((4, 6, 5), (0, 2)),
        ((4, 6, 5), ()),
        ((6,), ()),
        ((6,), (0,)),
    ],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_have_one_scale_for_each_index_of_the_axes(shape, axes, bits):
    # Channels of very different size: a wrong axis shows at once.
    weight = _normal(*shape) * np.logspace(-3, 0, shape[-1], dtype="float32")
    found = fake_quantize_weight(tf.constant(weight), bits=bits, axes=axes)
    assert found.shape == shape
    np.testing.assert_allclose(
        found, _symmetric(weight, bits, axes), atol=1e-6 * np.abs(weight).max()
    )


def test_weight_grid_is_symmetric_and_narrow():
    # 2 bits, narrow: -1, 0 and 1 times the scale, which is max|w| = 2.
    weight = tf.constant([[-2.0], [0.9], [1.1], [0.0]])
    y = fake_quantize_weight(weight, bits=2)
    assert y.numpy().tolist() == [[-2.0], [0.0], [2.0], [0.0]]


@pytest.mark.parametrize("axes", [(-1,), (-2, -1), ()])
def test_zeros_stay_exactly_zero(axes):
    weight = _normal(3, 3, 4, 5)
    weight[np.random.default_rng(1).random(weight.shape) < 0.7] = 0
    weight[..., 2] = 0  # A channel of nothing but zeros.
    y = fake_quantize_weight(tf.constant(weight), axes=axes).numpy()
    assert np.all(y[weight == 0] == 0)
    assert np.all(np.isfinite(y))


@pytest.mark.parametrize("axes", [(-1,), (0,), ()])
def test_weight_rounding_is_idempotent(axes):
    once = fake_quantize_weight(tf.constant(_normal(50, 40)), axes=axes)
    twice = fake_quantize_weight(once, axes=axes)
    # The largest weight is the grid's end; float32 may move it by its last bit.
    np.testing.assert_allclose(twice, once, rtol=3e-7)


def test_the_largest_weight_of_each_channel_is_not_cut():
    weight = _normal(20, 500)
    y = fake_quantize_weight(tf.constant(weight)).numpy()
    # 3e-7: the last bits of float32.
    np.testing.assert_allclose(np.abs(y).max(0), np.abs(weight).max(0), rtol=3e-7)


@pytest.mark.parametrize("axes", [(-1,), (0,), ()])
def test_gradient_reaches_every_weight_unchanged(axes):
    # Many channels: the largest weight of each lies on the very end of its grid.
    weight = tf.constant(_normal(7, 5000, seed=3))
    upstream = tf.constant(_normal(7, 5000, seed=4))
    with tf.GradientTape() as tape:
        tape.watch(weight)
        y = fake_quantize_weight(weight, axes=axes)
    gradient = tape.gradient(y, weight, output_gradients=upstream)
    np.testing.assert_array_equal(gradient, upstream)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_is_kept(dtype):
    x = tf.cast(_normal(4, 3), dtype)
    assert fake_quantize(x, -1.0, 1.0).dtype == dtype
    assert fake_quantize_weight(x).dtype == dtype
