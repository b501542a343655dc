"""Soft-label losses against numpy and against the equations of Hinton et al., 2015."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.distillation import soft_labels


def _softmax(logits, temperature):
    e = np.exp(logits / temperature)
    return e / e.sum(axis=-1, keepdims=True)


def _logits(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4)])
def test_loss_is_the_divergence_times_t_squared(shape, temperature):
    student, teacher = 3 * _logits(0, *shape), 3 * _logits(1, *shape)
    p, q = (_softmax(x.astype("float64"), temperature) for x in (teacher, student))
    expected = (p * np.log(p / q)).sum(axis=-1) * temperature**2
    found = soft_labels(student, teacher, temperature)
    assert found.shape == shape[:-1]
    # The divergence is a difference of numbers near 1, so float32 leaves an absolute
    # error of about 1e-7 in it, which T squared enlarges.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-7 * temperature**2)


def test_two_classes_worked_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2.
    teacher = np.log(np.array([[0.75, 0.25]], "float32"))
    found = soft_labels(np.zeros((1, 2), "float32"), teacher, 1.0)
    # 1e-6: float32.
    np.testing.assert_allclose(found, [0.75 * np.log(1.5) - 0.25 * np.log(2)], 1e-6)


def test_loss_is_zero_where_both_agree_and_positive_elsewhere():
    logits = 5 * _logits(2, 8, 10)
    assert np.all(np.asarray(soft_labels(logits, logits, 3.0)) == 0)
    assert np.all(np.asarray(soft_labels(logits[::-1], logits, 3.0)) > 0)


def test_log_probabilities_do_as_well_as_logits():
    student, teacher = _logits(3, 4, 6), _logits(4, 4, 6)
    as_logs = [np.log(_softmax(x, 1.0)) for x in (student, teacher)]
    # 1e-5: the logarithm of a float32 softmax carries a few of its last bits.
    np.testing.assert_allclose(
        soft_labels(*as_logs, 4.0), soft_labels(student, teacher, 4.0), rtol=1e-4
    )


def _gradient(student, teacher, temperature):
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(soft_labels(variable, teacher, temperature))
    return tape.gradient(loss, variable).numpy()


def test_gradient_is_t_times_the_difference_of_probabilities():
    # Eq. 2 of the paper, times T squared.
    student, teacher = _logits(5, 3, 7), _logits(6, 3, 7)
    expected = 2.5 * (_softmax(student, 2.5) - _softmax(teacher, 2.5))
    # float32 probabilities are right to about 1e-7.
    np.testing.assert_allclose(
        _gradient(student, teacher, 2.5), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("temperature", [100.0, 200.0])
def test_gradient_does_not_depend_on_a_high_temperature(temperature):
    # Eq. 4 of the paper: (z - v) / N for logits of zero mean, once T squared is in.
    student, teacher = _logits(7, 3, 5), _logits(8, 3, 5)
    centred = [x - x.mean(axis=-1, keepdims=True) for x in (student, teacher)]
    expected = (centred[0] - centred[1]) / 5
    # The next term of the series is about logit / T, here 2 / 100.
    np.testing.assert_allclose(
        _gradient(student, teacher, temperature), expected, atol=0.02
    )


def test_gradient_does_not_reach_a_stopped_teacher_and_is_zero_at_agreement():
    logits = _logits(9, 4, 4)
    # 1e-6: two equal float32 probabilities may differ in the last bit.
    np.testing.assert_allclose(_gradient(logits, logits, 4.0), 0, atol=1e-6)


def test_very_confident_logits_stay_finite():
    student = np.array([[1000.0, -1000.0]], "float32")
    loss = keras.ops.convert_to_numpy(soft_labels(student, -student, 1.0))
    # 2000: the divergence between two certain and opposite answers.
    np.testing.assert_allclose(loss, [2000.0])
