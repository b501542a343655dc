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


def grid(low, high, *, bits=8, symmetric=False, power_of_two=False):
    """Widens a range to one that an integer type can stand for.

    Args:
        low: Scalar float tensor, lowest value seen, at most 0.
        high: Scalar float tensor, highest value seen, at least 0.
        bits: Width of the integers.
        symmetric: Whether 0 must be the integer 0, as for 16 bits.
        power_of_two: Whether the scale must be a power of two, so that hardware shifts
            instead of multiplying; this makes the grid symmetric too.

    Returns:
        `(low, high)`, scalar tensors: the values of the lowest and highest integer.
    """
    if not (symmetric or power_of_two):
        return low, high
    highest = 2 ** (bits - 1) - 1
    scale = tf.maximum(-low, high) / highest
    if power_of_two:
        # A whole power is not exceeded by the one integer more below zero.
        scale = tf.maximum(-low / (highest + 1), high / highest)
        scale = next_power_of_two(tf.maximum(scale, _SMALLEST_SCALE))
    return -scale * (highest + 1), scale * highest
