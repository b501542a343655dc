"""Soft-label losses against numpy and against the equations of Hinton et al., 2015."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.distillation import (
    bounded_regression,
    decoupled,
    hard_labels,
    logits_cosine,
    logits_squared_error,
    mean_prediction,
    merged_classes,
    regression,
    soft_labels,
)


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


# The other losses on outputs, each against numpy.


def _log_softmax(x):
    x = np.asarray(x, "float64")
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4)])
def test_hard_labels_are_the_crossentropy_with_the_teachers_choice(shape):
    student, teacher = _logits(10, *shape), _logits(11, *shape)
    chosen = teacher.argmax(axis=-1)[..., None]
    expected = -np.take_along_axis(_log_softmax(student), chosen, axis=-1)[..., 0]
    # 1e-5: float32.
    np.testing.assert_allclose(hard_labels(student, teacher), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_is_equation_7_of_the_paper(temperature):
    student, teacher = 3 * _logits(12, 5, 6), 3 * _logits(13, 5, 6)
    labels = np.array([0, 5, 2, 2, 1])
    p, q = (_softmax(x.astype("float64"), temperature) for x in (teacher, student))
    expected = []
    for i, target in enumerate(labels):
        others = [j for j in range(6) if j != target]
        both = [np.array([x[i, target], x[i, others].sum()]) for x in (p, q)]
        rest = [x[i, others] / x[i, others].sum() for x in (p, q)]
        tckd = (both[0] * np.log(both[0] / both[1])).sum()
        nckd = (rest[0] * np.log(rest[0] / rest[1])).sum()
        expected.append((1.5 * tckd + 8 * nckd) * temperature**2)
    found = decoupled(student, teacher, np.eye(6)[labels], temperature, 1.5, 8.0)
    # 2e-5: differences of float32 logarithms near 1, times T squared.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_decoupled_with_the_teachers_own_weight_is_soft_labels():
    student, teacher = _logits(14, 4, 5), _logits(15, 4, 5)
    labels = np.array([0, 1, 2, 3])
    others = 1 - _softmax(teacher, 2.0)[np.arange(4), labels]
    found = decoupled(student, teacher, np.eye(5)[labels], 2.0, 1.0, others)
    np.testing.assert_allclose(found, soft_labels(student, teacher, 2.0), atol=1e-5)


def test_decoupled_has_a_finite_gradient_where_the_teacher_is_certain():
    student = tf.Variable(_logits(16, 2, 4))
    teacher = np.array([[60.0, 0, 0, 0], [0, 0, 0, 60.0]], "float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(decoupled(student, teacher, np.eye(4)[[0, 3]], 1.0, 1, 8))
    assert np.isfinite(tape.gradient(loss, student).numpy()).all()


def test_logit_losses_do_not_see_a_shift_and_match_numpy():
    student, teacher = _logits(17, 6, 5), _logits(18, 6, 5)
    s, t = (x - x.mean(axis=-1, keepdims=True) for x in (student, teacher))
    cosine = (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
    shifted = student + np.arange(6, dtype="float32")[:, None]
    for own in (student, shifted, _log_softmax(student).astype("float32")):
        # 1e-4: the shift costs bits.
        np.testing.assert_allclose(
            logits_squared_error(own, teacher), ((s - t) ** 2).mean(-1), rtol=1e-4
        )
        np.testing.assert_allclose(logits_cosine(own, teacher), 1 - cosine, rtol=1e-4)


@pytest.mark.parametrize(
    "error, by_hand",
    [
        ("squared", [[(4 + 0.25) / 2]]),
        ("absolute", [[(2 + 0.5) / 2]]),
        ("huber", [[(1.5 + 0.125) / 2]]),
    ],
)
def test_regression_worked_by_hand(error, by_hand):
    student, teacher = np.array([[[3.0, 0.5]]]), np.array([[[1.0, 0.0]]])
    np.testing.assert_allclose(regression(student, teacher, error), by_hand)


def test_a_bounded_regression_leaves_alone_who_beats_the_teacher():
    student, teacher = np.array([[1.0], [3.0], [2.0]]), np.array([[2.0], [2.0], [2.0]])
    labels = np.zeros((3, 1))
    # Errors 1, 9, 4 against the teacher's 4: better, worse, and equal within 0.5.
    found = bounded_regression(student, teacher, labels, 0.5)
    np.testing.assert_allclose(found, [0, 9, 4])


def test_teachers_are_averaged_in_probability():
    one, other = 3 * _logits(19, 4, 5), 3 * _logits(20, 4, 5)
    expected = (3 * _softmax(one, 1.0) + _softmax(other, 1.0)) / 4
    found = np.exp(mean_prediction([one, other], [1.5, 0.5]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_merged_classes_add_probabilities_and_leave_the_rest_out():
    teacher = _logits(21, 3, 6)
    p = _softmax(teacher.astype("float64"), 1.0)
    expected = np.stack([p[:, 4], p[:, 0] + p[:, 2] + p[:, 5], p[:, 1]], axis=-1)
    expected /= expected.sum(axis=-1, keepdims=True)
    found = merged_classes(teacher, [[4], [0, 2, 5], [1]])
    np.testing.assert_allclose(_softmax(np.asarray(found), 1.0), expected, rtol=1e-5)
