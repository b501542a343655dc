"""Adaptive rounding: which weights go up and which go down, learned (AdaRound).

A weight becomes `step * (floor(w / step) + h)`, where `h` in [0, 1] is a rectified
sigmoid of a logit. The regularizer drives every `h` to 0 or 1 in the end.

Example:
    ```python
    logits = initial_logits(fraction)   # h(logits) is the fraction: nothing rounded yet
    loss = error + regularizer(rectified_sigmoid(logits), exponent=8.0)
    ```

Reference:
    Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020,
    eqs. 22 to 25. arXiv:2004.10568
"""

import numpy as np
import tensorflow as tf

# The sigmoid is stretched beyond [0, 1], so that it reaches both ends (eq. 23).
_LOW, _HIGH = -0.1, 1.1

# The exponent falls from the first to the second: at first only what is nearly rounded
# is pulled on, in the end everything (section 3.3).
_EXPONENTS = 20.0, 2.0

# Adam's decays and what keeps it from dividing by 0, as Keras has them.
_MEAN, _SQUARE, _SMALL = 0.9, 0.999, 1e-7


def rectified_sigmoid(logits):
    """`clip(1.2 * sigmoid(logits) - 0.1, 0, 1)` (eq. 23).

    Args:
        logits: Float tensor, any shape.
    """
    return tf.clip_by_value(tf.sigmoid(logits) * (_HIGH - _LOW) + _LOW, 0.0, 1.0)


def initial_logits(fraction):
    """The logits whose rectified sigmoid is `fraction`.

    Args:
        fraction: Float array in [0, 1].

    Returns:
        Float32 array of its shape.
    """
    share = (np.asarray(fraction, np.float64) - _LOW) / (_HIGH - _LOW)
    return np.log(share / (1 - share)).astype("float32")


def regularizer(rounding, exponent):
    """`1 - |2 h - 1| ** exponent`, 0 where `h` is 0 or 1 (eq. 24, for each weight).

    Args:
        rounding: Float tensor `h` in [0, 1].
        exponent: Positive number or scalar tensor.
    """
    # Not quite 0, where the gradient of a power is not a number.
    away = tf.maximum(tf.abs(2 * rounding - 1), 1e-6)
    return 1 - tf.pow(away, exponent)


def exponents(steps, warm_up):
    """The exponent of the regularizer at each step after the warm-up.

    Args:
        steps: Number of steps in all.
        warm_up: Number of steps at the start without the regularizer.

    Returns:
        Float32 array `(steps,)`; 0 during the warm-up.
    """
    start, end = _EXPONENTS
    share = np.linspace(0, 1, max(steps - warm_up, 1))
    falling = end + 0.5 * (start - end) * (1 + np.cos(np.pi * share))
    found = np.concatenate([np.zeros(warm_up), falling])
    return found[:steps].astype("float32")


def adam(state, gradient, number, rate):
    """A step of Adam on tensors, without variables.

    Args:
        state: `(values, mean, square)`: float tensors of one shape, the last two zeros
            at the start.
        gradient: Float tensor of that shape.
        number: Of the step, from 1, a float scalar tensor.
        rate: Learning rate.

    Returns:
        The new state.

    Reference:
        Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1 in
        the order of section 2's end. arXiv:1412.6980
    """
    values, mean, square = state
    mean = _MEAN * mean + (1 - _MEAN) * gradient
    square = _SQUARE * square + (1 - _SQUARE) * tf.square(gradient)
    rate *= tf.sqrt(1 - tf.pow(_SQUARE, number)) / (1 - tf.pow(_MEAN, number))
    return values - rate * mean / (tf.sqrt(square) + _SMALL), mean, square
