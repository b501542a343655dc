"""Affine quantization against plain numpy rounding.

Tolerances: both sides round to the same integer, so they differ by float32 arithmetic
alone, a few units in the last place of the largest grid value: 1e-6 of the range.
"""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.affine import (
    fake_quantize,
    fake_quantize_folded_weight,
    fake_quantize_weight,
)


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


def test_an_asymmetric_weight_grid_spans_the_weights():
    # 2 bits from -1 to 2: the grid is -1, 0, 1, 2.
    weight = tf.constant([[-1.0], [0.4], [1.4], [2.0], [0.0]])
    y = fake_quantize_weight(weight, bits=2, symmetric=False)
    assert y.numpy().ravel().tolist() == [-1.0, 0.0, 1.0, 2.0, 0.0]


def test_an_asymmetric_weight_grid_is_moved_so_that_zero_lies_on_it():
    # 2 bits from -0.4 to 2.6: the step is 1, the lowest integer -0.4, moved to 0.
    weight = tf.constant([[-0.4], [0.0], [0.7], [2.6]])
    y = fake_quantize_weight(weight, bits=2, symmetric=False)
    # 1e-6: 2.6 and -0.4 are not exact in float32.
    np.testing.assert_allclose(y.numpy().ravel(), [0.0, 0.0, 1.0, 3.0], atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shift", [-5.0, -0.3, 0.0, 5.0])
def test_asymmetric_weights_round_as_numpy_does(bits, shift):
    # Of one sign too: the grid then starts or ends at 0.
    weight = _normal(50, 6) + np.float32(shift)
    found = fake_quantize_weight(tf.constant(weight), bits=bits, symmetric=False)
    for channel, w in zip(found.numpy().T, weight.T, strict=True):
        low, high = min(w.min(), 0), max(w.max(), 0)
        expected = _asymmetric(w, np.float64(low), np.float64(high), bits)
        np.testing.assert_allclose(channel, expected, atol=1e-6 * (high - low))
        assert len(np.unique(channel)) <= 2**bits


def test_an_asymmetric_weight_grid_has_no_value_too_many():
    # Both ends lie half a step from the grid, and float32 rounds both outward.
    weight = np.array([[-23.1243953704834], [217.55807495117188]], "float32")
    y = fake_quantize_weight(weight, symmetric=False).numpy()
    steps = (y.max() - y.min()) / (np.ptp(weight) / 255)
    # 1e-5: float32 of numbers up to 255.
    assert steps <= 255 * (1 + 1e-5)


def test_a_power_of_two_scale_is_rounded_up():
    # 2 bits: the integers are -1, 0, 1; max|w| = 0.75 gives the scale 1.
    weight = tf.constant([[0.75], [-0.4], [0.5]])
    y = fake_quantize_weight(weight, bits=2, power_of_two=True)
    assert y.numpy().ravel().tolist() == [1.0, 0.0, 1.0]
    # 8 bits: 127/64 fits 127 steps of 1/64 exactly, a little more does not.
    for largest, step in ((127 / 64, 1 / 64), (127.01 / 64, 1 / 32), (1.0, 1 / 64)):
        weight = tf.constant([[largest], [1.6 * step]])
        y = fake_quantize_weight(weight, power_of_two=True).numpy()
        assert y[1, 0] == 2 * step


@pytest.mark.parametrize("exponent", range(-20, 21, 5))
def test_a_scale_that_is_a_power_of_two_stays(exponent):
    # By logarithms some of them would double.
    weight = np.array([[127], [1], [-64]]) * np.float32(2) ** exponent
    for jit in (False, True):
        compiled = tf.function(
            lambda w: fake_quantize_weight(w, power_of_two=True), jit_compile=jit
        )
        np.testing.assert_array_equal(compiled(tf.constant(weight)), weight)


def test_the_rounding_of_powers_of_two_cuts_nothing():
    weight = _normal(40, 300)
    y = fake_quantize_weight(tf.constant(weight), bits=4, power_of_two=True).numpy()
    # Of 7 steps that may have doubled: half of max|w| / 3.5.
    assert np.all(np.abs(y - weight) <= np.abs(weight).max(0) / 7)
    steps = [np.abs(c[c != 0]).min() for c in y.T]
    assert np.all(np.log2(steps) % 1 == 0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bits_may_be_a_tensor(bits, symmetric):
    weight = tf.constant(_normal(30, 4))
    expected = fake_quantize_weight(weight, bits=bits, symmetric=symmetric)
    for jit in (False, True):
        compiled = tf.function(
            lambda b: fake_quantize_weight(weight, bits=b, symmetric=symmetric),
            jit_compile=jit,
        )
        # 1e-6: XLA multiplies by the reciprocal.
        atol = 1e-6 * np.abs(weight).max() if jit else 0
        found = compiled(tf.constant(float(bits)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("bits", [0, -1, 0.0, -2.0])
def test_without_bits_a_weight_is_returned_as_it_is(bits):
    weight = tf.constant(_normal(30, 4))
    given = tf.constant(bits) if isinstance(bits, float) else bits
    with tf.GradientTape() as tape:
        tape.watch(weight)
        y = fake_quantize_weight(weight, bits=given)
    np.testing.assert_array_equal(y, weight)
    assert np.all(tape.gradient(y, weight).numpy() == 1)


_KERNEL = np.array([[1.0, 2.0], [3.0, -1.0]], "float32")


@pytest.mark.parametrize(
    "factor, expected",
    [
        # Folded: 2, 1, 6, -0.5. In 3 bits the scale is 6 / 3 and the integers are
        # 1, 1, 3, 0.
        ([2.0, 0.5], [[1.0, 4.0], [3.0, 0.0]]),
        ([-2.0, 0.5], [[1.0, 4.0], [3.0, 0.0]]),
        # The second channel has no part in the scale of 2, and is rounded by it.
        ([2.0, 0.0], [[1.0, 2.0], [3.0, 0.0]]),
    ],
)
def test_folded_weights_worked_by_hand(factor, expected):
    y = fake_quantize_folded_weight(_KERNEL, tf.constant(factor), bits=3)
    np.testing.assert_array_equal(y, expected)


def test_a_folded_weight_lies_on_one_grid_for_all_channels():
    weight, factor = _normal(3, 3, 4, 6), np.logspace(-3, 1, 6, dtype="float32")
    y = fake_quantize_folded_weight(tf.constant(weight), tf.constant(factor), bits=5)
    folded = y.numpy() * factor
    integers = folded / (np.abs(weight * factor).max() / 15)
    # 1e-5: float32 of numbers up to 15.
    np.testing.assert_allclose(integers, np.round(integers), atol=1e-5)
    np.testing.assert_allclose(np.abs(integers).max(), 15, atol=1e-5)


def test_depthwise_channels_are_the_last_two_axes():
    # 2 channels of 2 multiples each: the factor is in the order of the outputs.
    weight = np.ones((1, 1, 2, 2), "float32")
    y = fake_quantize_folded_weight(
        weight, tf.constant([3.0, 2.0, 1.0, 0.4]), bits=3, channel_axes=(-2, -1)
    )
    np.testing.assert_allclose(y.numpy().ravel(), [1.0, 1.0, 1.0, 0.0])


def test_folding_with_one_scale_for_each_channel_changes_nothing():
    weight, factor = tf.constant(_normal(20, 6)), tf.constant(_normal(6, seed=1))
    folded = fake_quantize_folded_weight(weight, tf.abs(factor), axes=(-1,))
    # 1e-6: the factor is multiplied and divided.
    np.testing.assert_allclose(folded, fake_quantize_weight(weight), atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-20, 1e20])
def test_any_factor_gives_finite_weights_and_keeps_zeros(factor):
    weight = _normal(20, 3)
    weight[::2] = 0
    given = tf.constant([factor, factor, 1.0 if factor == 1e20 else factor])
    y = fake_quantize_folded_weight(tf.constant(weight), given).numpy()
    assert np.all(np.isfinite(y))
    assert np.all(y[weight == 0] == 0)


def test_no_gradient_reaches_the_factor():
    weight, factor = tf.constant(_normal(20, 3)), tf.constant([1.0, 2.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch([weight, factor])
        y = fake_quantize_folded_weight(weight, factor)
    by_weight, by_factor = tape.gradient(y, [weight, factor])
    assert np.all(by_weight.numpy() == 1)
    assert by_factor is None


def test_a_factor_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"has 2 indices .* Received: values of shape"):
        fake_quantize_folded_weight(_KERNEL, tf.ones(3))
