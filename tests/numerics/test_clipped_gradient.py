"""The gradient of a cut, with and without XLA, and behind a ReLU."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.affine import fake_quantize
from tfcompress.numerics.clipped_gradient import is_compiled, pass_within, relu_source

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


RELUS = [
    tf.nn.relu,
    tf.nn.relu6,
    keras.layers.ReLU(),
    keras.layers.ReLU(6.0),
    keras.layers.Activation("relu"),
]


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("relu", RELUS, ids=lambda f: getattr(f, "name", "tf"))
@pytest.mark.parametrize("low, high", [(0.0, 4.0), (-1.0, 9.0)])
@pytest.mark.parametrize("width", [1, 3000], ids=["small", "large"])
def test_behind_a_relu_both_gradients_are_what_they_are_one_by_one(
    relu, low, high, jit, active, width
):
    values = [-7.0, -1e-3, 0.0, 1e-3, 3.99, 4.01, 5.9, 6.0, 6.1, 9.5]
    x = tf.repeat(tf.constant(values)[:, None], width, axis=1)

    def slopes(x, active, fenced):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = relu(x)
            z = fake_quantize(y, low, high, active=active, joins_relu=not fenced)
        return z, tape.gradient(z, x)

    run = tf.function(slopes, jit_compile=jit)
    on = tf.constant(active)
    for one, other in zip(run(x, on, False), run(x, on, True), strict=True):
        np.testing.assert_array_equal(one, other)
    y, expected = slopes(x, on, False)
    np.testing.assert_array_equal(run(x, on, False)[1], expected)
    np.testing.assert_allclose(run(x, on, False)[0], y, atol=1e-6)


def test_the_source_of_a_relu_is_found_in_the_graph_at_hand_only():
    seen = []

    @tf.function
    def outer(x):
        y = tf.nn.relu(x)
        seen.append(relu_source(y))
        seen.append(relu_source(tf.nn.tanh(x)))
        half = tf.nn.relu(tf.cast(x, tf.float16))
        seen.append((relu_source(half)[0] is half,))

        @tf.function
        def inner():
            seen.append((relu_source(y)[0] is y,))

        inner()
        return y

    outer(tf.constant([1.0]))
    assert seen[0][0].name.startswith("x") and 0 < seen[0][1] < 1e-37
    assert seen[0][2] == ALL
    assert seen[1][1:] == (-ALL, ALL)
    assert seen[2] == seen[3] == (True,)
    eager = tf.nn.relu(tf.constant([1.0]))
    assert relu_source(eager)[0] is eager


def test_what_else_reads_the_relu_keeps_its_gradient():
    @tf.function
    def slopes(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nn.relu(x)
            z = fake_quantize(y, 0.0, 4.0, joins_relu=True) + 10 * y
        return tape.gradient(z, x)

    found = slopes(tf.constant([-1.0, 2.0, 5.0])).numpy().tolist()
    assert found == [0.0, 11.0, 10.0]


def test_unless_told_otherwise_the_gradient_reaches_the_relus_output():
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
