"""The grid on which activations are rounded, from the range that was seen.

Example:
    ```python
    low, high = grid(-0.9, 3.1, bits=16, symmetric=True)
    ```
"""

import tensorflow as tf

from tfcompress.numerics.affine import next_power_of_two

# Below it float32 has fewer digits, and XLA takes it for zero.
_SMALLEST_SCALE = 1e-30
# What steps may grow by for both ends of the range to lie on the grid.
_MOST_WIDENED = 1.005


def grid(low, high, *, bits=8, symmetric=False, power_of_two=False, ends_on_grid=False):
    """Widens a range to one that an integer type can stand for.

    Args:
        low: Scalar float tensor, lowest value seen, at most 0.
        high: Scalar float tensor, highest value seen, at least 0.
        bits: Width of the integers.
        symmetric: Whether 0 must be the integer 0, as for 16 bits.
        power_of_two: Whether the scale must be a power of two, so that hardware shifts
            instead of multiplying; this makes the grid symmetric too.
        ends_on_grid: Whether a range is widened so that neither end is cut, where that
            makes steps at most 0.5 % wider. A grid of 256 values holds 0 and so cannot
            hold -1 and 1: it lies half a step beside every pixel that was scaled to
            [-1, 1], and each is rounded by chance. One of -128 to 127 times 1 / 127
            holds all three.

    Returns:
        `(low, high)`, scalar tensors: the values of the lowest and highest integer.
    """
    if not (symmetric or power_of_two):
        return _widened(low, high, bits) if ends_on_grid else (low, high)
    highest = 2 ** (bits - 1) - 1
    scale = tf.maximum(-low, high) / highest
    if power_of_two:
        # A whole power is not exceeded by the one integer more below zero.
        scale = tf.maximum(-low / (highest + 1), high / highest)
        scale = next_power_of_two(tf.maximum(scale, _SMALLEST_SCALE))
    return -scale * (highest + 1), scale * highest


def _widened(low, high, bits):
    levels = 2**bits - 1
    scale = (high - low) / levels
    # A bit more than a half: of two equal choices the one with the integer 0 at 0.
    below = tf.floor(-low / scale + 0.501)
    above = levels - below
    wider = tf.maximum(-low / tf.maximum(below, 1), high / tf.maximum(above, 1))
    fits = (below >= 1) & (above >= 1) & (wider <= _MOST_WIDENED * scale)
    return tf.where(fits, -below * wider, low), tf.where(fits, above * wider, high)
