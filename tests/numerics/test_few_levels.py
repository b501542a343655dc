"""Ternary and binary weights against numbers worked by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.few_levels import binarize, ternarize


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_ternary_worked_by_hand():
    # mean|w| is 1 and 2, the thresholds 0.7 and 1.4.
    weight = [[1.0, 1.0], [-2.0, -2.0], [0.5, 5.0], [0.5, 0.0]]
    y = ternarize(tf.constant(weight))
    assert y.numpy().T.tolist() == [[1.5, -1.5, 0, 0], [0, -3.5, 3.5, 0]]


def test_ternary_with_one_scale():
    # mean|w| is 2, the threshold 1.4: 2 and 5 are left.
    weight = tf.constant([[1.0, -2.0], [0.0, 5.0]])
    y = ternarize(weight, axes=())
    assert y.numpy().tolist() == [[0, -3.5], [0, 3.5]]


def test_binary_worked_by_hand():
    weight = tf.constant([[1.0, 0.5], [-2.0, 0.5], [3.0, -1.5], [0.0, 1.5]])
    y = binarize(weight)
    assert y.numpy().T.tolist() == [[2, -2, 2, 0], [1, 1, -1, 1]]


def test_binary_with_one_scale():
    weight = tf.constant([[1.0, 0.5], [-2.0, 0.5]])
    assert binarize(weight, axes=()).numpy().tolist() == [[1, 1], [-1, 1]]


@pytest.mark.parametrize("axes", [(-1,), (2, 3), (0,), ()])
def test_ternary_is_nearly_the_best_of_all_thresholds(axes):
    # Independent answer: try every threshold. The paper's 0.7 is for a normal or
    # uniform weight close to the best, here within 3 % of its error.
    weight = _normal(4, 4, 3, 5)
    found = ternarize(tf.constant(weight), axes=axes).numpy()
    kept = [axis % 4 for axis in axes]
    others = [axis for axis in range(4) if axis not in kept]
    count = int(np.prod([weight.shape[axis] for axis in kept]))
    rows, found = (
        x.transpose(kept + others).reshape(count, -1) for x in (weight, found)
    )
    best = 0
    for row in np.abs(rows):
        ordered = np.sort(row)[::-1]
        n = np.arange(1, row.size + 1)
        best += np.sum(row**2) - np.max(np.cumsum(ordered) ** 2 / n)
    assert best <= np.sum((rows - found) ** 2) * (1 + 1e-6)
    assert np.sum((rows - found) ** 2) < 1.03 * best


@pytest.mark.parametrize("function", [ternarize, binarize])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sums_are_made_in_float32(function, dtype):
    # 5000 halves are 2500; in half precision they would not add up.
    weight = tf.cast(tf.fill((5000, 1), 0.5), dtype)
    y = function(weight)
    assert y.dtype == dtype
    np.testing.assert_array_equal(tf.cast(y, "float32"), np.full((5000, 1), 0.5))


@pytest.mark.parametrize("function", [ternarize, binarize])
def test_a_channel_of_zeros_stays_zero(function):
    weight = _normal(10, 3)
    weight[:, 1] = 0
    y = function(tf.constant(weight)).numpy()
    assert np.all(y[:, 1] == 0) and np.all(np.isfinite(y))


@pytest.mark.parametrize("function", [ternarize, binarize])
@pytest.mark.parametrize("bits", [0, tf.constant(0.0)], ids=["number", "tensor"])
def test_without_bits_a_weight_is_returned_as_it_is(function, bits):
    weight = _normal(10, 3)
    np.testing.assert_array_equal(function(tf.constant(weight), bits=bits), weight)
