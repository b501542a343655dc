"""Grids of activations against ranges worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.activation_range import grid
from tfcompress.numerics.range_estimation import power_of_two_range


def _grid(low, high, **settings):
    found = grid(
        tf.constant(low, tf.float32), tf.constant(high, tf.float32), **settings
    )
    return tuple(float(bound) for bound in found)


def test_an_asymmetric_grid_is_the_range_that_was_seen():
    assert _grid(-0.5, 3.0) == (-0.5, 3.0)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (-3.0, 1.0), (0.0, 3.0)])
def test_a_symmetric_grid_reaches_the_larger_end_on_both_sides(low, high, bits):
    lowest, highest = _grid(low, high, bits=bits, symmetric=True)
    scale = 3.0 / (2 ** (bits - 1) - 1)
    # 1e-6: float32.
    assert highest == pytest.approx(3.0, rel=1e-6)
    assert lowest == pytest.approx(-3.0 - scale, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_power_of_two_grid_is_the_smallest_that_covers_the_range(bits):
    ranges = np.random.default_rng(0).lognormal(0, 3, (50, 2)).astype("float32")
    for low, high in ranges * [-1, 1]:
        expected = power_of_two_range(low, high, bits=bits)
        assert _grid(low, high, bits=bits, power_of_two=True) == expected


@pytest.mark.parametrize("jit", [False, True])
def test_a_range_that_is_a_power_of_two_grid_stays_as_it_is(jit):
    made = tf.function(lambda a, b: grid(a, b, power_of_two=True), jit_compile=jit)
    for exponent in range(-40, 30):
        low, high = -128 * 2.0**exponent, 127 * 2.0**exponent
        for either in (low, 0.0):
            found = made(tf.constant(either), tf.constant(high))
            assert tuple(map(float, found)) == (low, high)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_an_empty_range_gives_a_grid_of_numbers(symmetric, power_of_two):
    low, high = _grid(0.0, 0.0, symmetric=symmetric, power_of_two=power_of_two)
    assert low <= 0 <= high and high - low < 1e-20


def test_both_ends_of_a_range_around_zero_lie_on_the_grid():
    low, high = _grid(-1.0, 1.0, ends_on_grid=True)
    # 1e-7: float32.
    assert (low, high) == pytest.approx((-128 / 127, 1.0), abs=1e-7)
    low, high = _grid(-0.95, 1.0, ends_on_grid=True)
    scale = (high - low) / 255
    # 255 * 0.95 / 1.95 = 124.2 values below zero; those 131 above reach 1.
    assert -low / scale == pytest.approx(124, abs=1e-4)
    assert low < -0.95 + 1e-6 and high > 1 - 1e-6 and scale < 1.005 * 1.95 / 255


@pytest.mark.parametrize("low, high", [(0, 1), (-1, 0), (-0.1, 3), (-3, 0.1), (0, 0)])
def test_other_ranges_are_not_widened(low, high):
    found = _grid(low, high, ends_on_grid=True)
    assert found == tuple(map(float, np.float32((low, high))))


def test_a_range_that_holds_both_ends_already_stays_as_it_is():
    assert _grid(-1.0, 127 / 128, ends_on_grid=True) == (-1.0, 127 / 128)
