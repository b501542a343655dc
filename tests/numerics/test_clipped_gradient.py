"""The gradient of a cut, with and without XLA."""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.affine import fake_quantize
from tfcompress.numerics.clipped_gradient import is_compiled, pass_within

X = [-4.0, -3.0, -0.1, 0.0, 0.5, 3.2, 3.3, np.inf]
SLOPES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
ALL = float("inf")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("how", ["eager", "graph", "xla", "called by xla"])
@pytest.mark.parametrize(
    "low, high, passed",
    [
        (-3.0, 3.25, [0, 2, 3, 4, 5, 6, 0, 0]),
        (0.0, ALL, [0, 0, 0, 4, 5, 6, 7, 8]),
        (-ALL, ALL, SLOPES),
    ],
)
def test_it_passes_between_the_bounds_themselves_included(
    low, high, passed, how, dtype
):
    def function(x, dy):
        return pass_within(dy, x, low, high, compiled=is_compiled())

    run = {
        "eager": function,
        "graph": tf.function(function),
        "xla": tf.function(function, jit_compile=True),
        "called by xla": tf.function(
            lambda *args: tf.function(function)(*args), jit_compile=True
        ),
    }[how]
    found = run(tf.constant(X, dtype), tf.constant(SLOPES, dtype))
    assert found.dtype == dtype
    assert tf.cast(found, tf.float32).numpy().tolist() == passed


def test_behind_a_relu_the_gradient_reaches_its_output():
    @tf.function
    def slope(x):
        with tf.GradientTape() as tape:
            y = tf.nn.relu(x)
            tape.watch(y)
            z = fake_quantize(y, 0.0, 4.0)
        return tape.gradient(z, y)

    assert slope(tf.constant([-1.0, 2.0, 5.0])).numpy().tolist() == [1.0, 1.0, 0.0]


def test_a_compiled_step_is_differentiated_from_outside():
    compiled = tf.function(lambda x: fake_quantize(x, -1.0, 1.0), jit_compile=True)

    @tf.function
    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = compiled(x)
        return tape.gradient(y, x)

    assert slope(tf.constant([-2.0, 0.5, 2.0])).numpy().tolist() == [0.0, 1.0, 0.0]


def test_a_range_of_nothing_but_zero_passes_the_gradient():
    x = tf.constant([-1.0, 0.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = fake_quantize(x, 0.0, 0.0)
    assert y.numpy().tolist() == [0.0, 0.0, 0.0]
    assert tape.gradient(y, x).numpy().tolist() == [1.0, 1.0, 1.0]
