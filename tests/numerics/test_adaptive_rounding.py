"""AdaRound's functions, against the equations written down by hand."""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.numerics import adaptive_rounding as adaptive


def test_the_rectified_sigmoid_reaches_both_ends():
    found = adaptive.rectified_sigmoid(tf.constant([-9.0, 0.0, 9.0, 1.0])).numpy()
    expected = np.clip(1.2 / (1 + np.exp(-np.array([-9.0, 0, 9, 1]))) - 0.1, 0, 1)
    # float32: one rounding of each of three operations.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0] == 0 and found[2] == 1


def test_initial_logits_give_the_fraction():
    fraction = np.array([0.0, 0.01, 0.5, 0.999], "float32")
    found = adaptive.rectified_sigmoid(adaptive.initial_logits(fraction))
    np.testing.assert_allclose(found, fraction, atol=1e-6)


def test_the_regularizer_vanishes_where_nothing_is_left_to_round():
    h = tf.constant([0.0, 1.0, 0.5, 0.25])
    found = adaptive.regularizer(h, 2.0).numpy()
    np.testing.assert_allclose(found, [0, 0, 1, 0.75], atol=1e-6)
    steep = adaptive.regularizer(tf.constant([0.1]), 20.0).numpy()
    np.testing.assert_allclose(steep, 1 - 0.8**20, atol=1e-6)


def test_the_regularizer_has_a_gradient_everywhere():
    h = tf.Variable([0.0, 0.5, 1.0, 0.75])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(adaptive.regularizer(h, 3.0))
    gradient = tape.gradient(value, h).numpy()
    # d/dh of 1 - |2h - 1|^3.
    np.testing.assert_allclose(gradient, [6, 0, -6, -1.5], atol=1e-5)


def test_exponents_wait_and_fall():
    found = adaptive.exponents(10, 2)
    assert found.shape == (10,)
    np.testing.assert_array_equal(found[:2], 0)
    assert found[2] == 20 and found[-1] == 2
    assert np.all(np.diff(found[2:]) < 0)
    assert adaptive.exponents(1, 0)[0] == 20


def test_adam_is_keras():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 3)).astype("float32")
    variable = keras.Variable(start)
    optimizer = keras.optimizers.Adam(0.02)
    state = tf.constant(start), tf.zeros((5, 3)), tf.zeros((5, 3))
    for number in range(1, 20):
        gradient = tf.constant(rng.normal(size=(5, 3)), tf.float32)
        optimizer.apply([gradient], [variable])
        state = adaptive.adam(state, gradient, tf.constant(float(number)), 0.02)
    np.testing.assert_allclose(state[0], variable, rtol=1e-5, atol=1e-6)
