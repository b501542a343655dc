"""Factors between two kernels, by hand."""

import numpy as np

from tfcompress.numerics.equalization import channel_factors


def test_both_ranges_become_their_geometric_mean():
    first, second = np.array([8.0, 0.5, 3.0]), np.array([2.0, 2.0, 3.0])
    factor = channel_factors(first, second)
    np.testing.assert_allclose(factor, [2.0, 0.5, 1.0])
    np.testing.assert_allclose(first / factor, second * factor)
    np.testing.assert_allclose(first / factor, np.sqrt(first * second))


def test_a_channel_of_zeros_is_left_alone():
    factor = channel_factors(np.array([0.0, 2.0]), np.array([5.0, 0.0]))
    np.testing.assert_array_equal(factor, [1.0, 1.0])
