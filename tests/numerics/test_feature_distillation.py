"""Losses between features, each against numpy written from the paper."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist

from tfcompress.numerics.feature_distillation import (
    attention_transfer,
    contrastive,
    relational_angle,
    relational_distance,
    resampling,
    similarity_preserving,
    squared_difference,
)


def _features(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def test_squared_difference_is_the_mean_over_channels():
    student, teacher = _features(0, 2, 3, 3, 4), _features(1, 2, 3, 3, 4)
    found = squared_difference(student, teacher)
    np.testing.assert_allclose(found, ((student - teacher) ** 2).mean(-1), rtol=1e-5)


@pytest.mark.parametrize("power", [1, 2])
def test_attention_transfer(power):
    student, teacher = _features(2, 3, 4, 5, 6), _features(3, 3, 4, 5, 2)
    maps = []
    for x in (student, teacher):
        q = (np.abs(x) ** power).mean(axis=-1).reshape(3, -1)
        maps.append(q / np.linalg.norm(q, axis=1, keepdims=True))
    expected = ((maps[0] - maps[1]) ** 2).sum(axis=1)
    found = attention_transfer(student, teacher, power)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_similarity_preserving_means_to_equation_4():
    student, teacher = _features(4, 5, 3, 2), _features(5, 5, 7)
    grams = []
    for x in (student, teacher):
        x = x.reshape(5, -1).astype("float64")
        gram = x @ x.T
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    expected = np.linalg.norm(grams[0] - grams[1]) ** 2 / 5**2
    found = np.mean(similarity_preserving(student, teacher))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_relational_distance_against_scipy():
    student, teacher = _features(6, 6, 4), 3 * _features(7, 6, 9)
    distances = []
    for x in (student, teacher):
        d = cdist(x.astype("float64"), x.astype("float64"))
        distances.append(d / d[d > 0].mean())
    expected = _huber(distances[0] - distances[1]).mean(axis=1)
    # 1e-3: squares of distances are differences of float32 numbers.
    np.testing.assert_allclose(
        relational_distance(student, teacher), expected, rtol=1e-3
    )


def test_relational_angle_by_loops_over_triples():
    student, teacher = _features(8, 4, 3), _features(9, 4, 5)

    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        if not a.any() or not b.any():
            return 0.0
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = [
        np.mean(
            [
                _huber(cosine(student, i, j, k) - cosine(teacher, i, j, k))
                for i in range(4)
                for k in range(4)
            ]
        )
        for j in range(4)
    ]
    np.testing.assert_allclose(relational_angle(student, teacher), expected, rtol=1e-4)


@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_relations_of_equal_examples_have_a_finite_gradient(loss):
    student = tf.Variable(np.repeat(_features(10, 2, 3), 2, axis=0))
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(loss(student, _features(11, 4, 3)))
    gradient = tape.gradient(value, student).numpy()
    assert np.isfinite(gradient).all() and gradient.any()


def test_contrastive_is_the_crossentropy_of_the_own_example():
    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    student, teacher = unit(_features(12, 3, 4)), unit(_features(13, 3, 4))
    memory = unit(_features(14, 8, 4))
    for filled in (0, 5, 8):
        candidates = np.concatenate([teacher, memory[:filled]])
        logits = student @ candidates.T / 0.1
        expected = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
        found = contrastive(student, teacher, memory, filled, 0.1)
        # 1e-5: float32.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length, wanted", [(6, 3), (3, 6), (7, 3), (5, 5), (4, 1)])
def test_resampling_keeps_means_and_a_whole_factor_pools(length, wanted):
    matrix = resampling(length, wanted)
    assert matrix.shape == (wanted, length)
    # 1e-6: float32.
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix.mean(axis=0), 1 / length, atol=1e-6)
    x = np.arange(length, dtype="float32")
    if length % wanted == 0:
        np.testing.assert_allclose(matrix @ x, x.reshape(wanted, -1).mean(axis=1))
    if wanted % length == 0:
        np.testing.assert_allclose(matrix @ x, np.repeat(x, wanted // length))
