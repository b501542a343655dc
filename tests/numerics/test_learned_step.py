"""LSQ against numbers worked by hand and the paper's equations in numpy."""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.learned_step import (
    fake_quantize_learned_step,
    initial_step,
    least_error_step,
)


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _gradients(weight, step, upstream=None, **kwargs):
    weight, step = tf.constant(weight), tf.constant(step)
    with tf.GradientTape() as tape:
        tape.watch([weight, step])
        y = fake_quantize_learned_step(weight, step, **kwargs)
    upstream = None if upstream is None else tf.constant(upstream)
    return tape.gradient(y, [weight, step], output_gradients=upstream)


def test_initial_steps_worked_by_hand():
    weight = np.array([[1.0, 2.0], [-3.0, 2.0]])
    # mean|w| is 2; the highest integers are 1 and 127.
    assert initial_step(weight, bits=2).tolist() == [4.0, 4.0]
    assert initial_step(weight, bits=2, axes=()).tolist() == [4.0]
    # 1e-6: float32.
    np.testing.assert_allclose(initial_step(weight), 4 / np.sqrt([127, 127]), rtol=1e-6)
    assert initial_step(weight).dtype == "float32"


def test_initial_steps_leave_out_zeros():
    weight = np.array([[1.0, 0.0, 0.0], [-3.0, 6.0, 0.0], [0.0, 0.0, 0.0]])
    # The last channel has none but zeros: the mean over the others, 10 / 3.
    np.testing.assert_allclose(initial_step(weight, bits=2), [4, 12, 20 / 3], rtol=1e-6)
    assert initial_step(np.zeros((3, 2)), bits=2).tolist() == [2.0, 2.0]


def test_depthwise_steps_are_in_memory_order():
    weight = np.arange(1.0, 5).reshape(1, 1, 2, 2)
    assert initial_step(weight, bits=2, axes=(2, 3)).tolist() == [2, 4, 6, 8]
    y = fake_quantize_learned_step(
        tf.ones((1, 1, 2, 2)), tf.constant([1.0, 2, 3, 0.25]), bits=3, axes=(2, 3)
    )
    assert y.numpy().ravel().tolist() == [1, 2, 0, 0.75]


def test_rounding_and_gradients_worked_by_hand():
    # 3 bits, step 1: the integers are -3 to 3.
    weight = np.array([[0.4], [0.6], [-5.0], [2.6], [0.0]], "float32")
    y = fake_quantize_learned_step(weight, np.ones(1, "float32"), bits=3)
    assert y.numpy().ravel().tolist() == [0, 1, -3, 3, 0]
    by_weight, by_step = _gradients(weight, [1.0], bits=3)
    assert by_weight.numpy().ravel().tolist() == [1, 1, 0, 1, 1]
    # Eq. 3: -0.4, 0.4, -3, 0.4 and 0, times 1 / sqrt(5 weights * 3).
    np.testing.assert_allclose(by_step, [-2.6 / np.sqrt(15)], rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("jit", [False, True])
def test_it_is_the_paper_for_each_channel(bits, jit):
    weight, upstream = _normal(60, 3), _normal(60, 3, seed=1)
    step = np.array([0.5, 0.02, 0.004], "float32")
    q = 2 ** (bits - 1) - 1
    ratio = weight.astype("float64") / step
    inside = np.abs(ratio) < q
    integers = np.clip(np.floor(ratio + 0.5), -q, q)
    eq3 = np.where(inside, integers - ratio, q * np.sign(ratio))

    function = tf.function(
        lambda w, s, u: _gradients_of(w, s, u, bits), jit_compile=jit, autograph=False
    )
    y, by_weight, by_step = function(weight, step, upstream)
    # 1e-6: float32 of numbers up to 4; 1e-5: sums of 60 of them.
    np.testing.assert_allclose(y, integers * step, atol=1e-6)
    np.testing.assert_array_equal(by_weight, np.where(inside, upstream, 0))
    expected = np.sum(eq3 * upstream, 0) / np.sqrt(60 * q)
    np.testing.assert_allclose(by_step, expected, rtol=1e-5, atol=1e-5)


def _gradients_of(weight, step, upstream, bits):
    with tf.GradientTape() as tape:
        tape.watch([weight, step])
        y = fake_quantize_learned_step(weight, step, bits=bits)
    return y, *tape.gradient(y, [weight, step], output_gradients=upstream)


def test_a_step_past_zero_turns_back():
    weight = _normal(20, 1)
    for of_step in (1.0, -1.0):
        y = fake_quantize_learned_step(weight, np.array([0.1 * of_step], "float32"))
        np.testing.assert_array_equal(
            y, fake_quantize_learned_step(weight, np.array([0.1], "float32"))
        )
    (_, there), (_, back) = (_gradients(weight, [s], weight) for s in (0.1, -0.1))
    assert there.numpy() == -back.numpy() != 0


def test_a_step_of_zero_is_finite():
    weight = _normal(20, 1)
    weight[0] = 0
    y = fake_quantize_learned_step(weight, np.zeros(1, "float32")).numpy()
    assert np.all(np.isfinite(y)) and y[0] == 0
    assert all(np.all(np.isfinite(g)) for g in _gradients(weight, [0.0]))


@pytest.mark.parametrize("bits", [0, tf.constant(0.0)], ids=["number", "tensor"])
def test_without_bits_nothing_is_rounded_and_no_step_learned(bits):
    weight = _normal(20, 2)
    step = np.ones(2, "float32")
    y = fake_quantize_learned_step(tf.constant(weight), step, bits=bits)
    np.testing.assert_array_equal(y, weight)
    by_weight, by_step = _gradients(weight, step, bits=bits)
    assert np.all(by_weight.numpy() == 1)
    assert by_step is None or not np.any(by_step)


def test_bits_may_be_a_tensor():
    weight, step = _normal(20, 2), np.full(2, 0.1, "float32")
    for bits in (2, 4, 8):
        np.testing.assert_array_equal(
            fake_quantize_learned_step(weight, step, bits=tf.constant(float(bits))),
            fake_quantize_learned_step(weight, step, bits=bits),
        )


def test_steps_of_another_number_are_refused():
    with pytest.raises(ValueError, match="has 2 indices along the axes"):
        fake_quantize_learned_step(tf.ones((3, 2)), tf.ones(3))


def test_learning_the_step_lowers_the_error():
    weight = tf.constant(_normal(2000, 1))
    step = tf.Variable([2.0])

    def error():
        y = fake_quantize_learned_step(weight, step, bits=3)
        return tf.reduce_mean((y - weight) ** 2)

    before = error()
    for _ in range(200):
        with tf.GradientTape() as tape:
            loss = error()
        step.assign_sub(50 * tape.gradient(loss, step))
    # The best grid of 7 levels for a normal weight has a step of 0.65, error 0.044.
    assert error() < 0.05 < before
    assert 0.55 < step.numpy()[0] < 0.75


@pytest.mark.parametrize("axes", [(), (-1,), (0, 1)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_other_step_of_a_hundred_has_less_error(bits, axes):
    weight = np.random.default_rng(0).normal(size=(6, 5, 4)) ** 3
    weight[..., 0] *= 10
    found = least_error_step(weight, bits=bits, axes=axes)
    assert found.dtype == "float32"
    highest = 2 ** (bits - 1) - 1
    # Each channel by itself, by brute force.
    channels = {
        (): [weight],
        (-1,): list(np.moveaxis(weight, -1, 0)),
        (0, 1): list(weight.reshape(30, 4)),
    }[axes]
    assert len(found) == len(channels)

    def error(channel, step):
        rounded = np.clip(np.round(channel / step), -highest, highest) * step
        return np.square(channel - rounded).sum()

    for step, channel in zip(found, channels, strict=True):
        widest = np.abs(channel).max() / highest
        least = min(error(channel, widest * n / 100) for n in range(1, 101))
        np.testing.assert_allclose(error(channel, step), least, rtol=1e-4)


def test_the_step_of_least_error_of_zeros_is_that_of_training():
    weight = np.zeros((3, 2), "float32")
    weight[:, 0] = [0.5, -1.0, 0.25]
    found = least_error_step(weight, bits=4, axes=(-1,))
    assert found[1] == initial_step(weight, bits=4, axes=(-1,))[1] > 0
