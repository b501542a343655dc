"""Product quantization: blocks, nearest vectors, means, gradients."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.cluster.vq import vq

from tfcompress.numerics import vector_codebooks
from tfcompress.numerics.vector_codebooks import (
    from_blocks,
    initial_vectors,
    mean_vectors,
    nearest_vectors,
    share_vectors,
    to_blocks,
)


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("block", [2, 3, 4])
def test_blocks_lie_along_the_axis_and_go_back(axis, block):
    weight = _normal(6, 5, 4)
    blocks = to_blocks(weight, block=block, axis=axis)
    first = np.moveaxis(weight, axis, -1)[0, 0, :block]
    np.testing.assert_array_equal(blocks[0][: len(first)], first)
    np.testing.assert_array_equal(
        to_blocks(tf.constant(weight), block=block, axis=axis), blocks
    )
    back = from_blocks(tf.constant(blocks), weight.shape, axis=axis)
    np.testing.assert_array_equal(back, weight)


def test_nearest_vectors_are_those_of_scipy(monkeypatch):
    blocks, vectors = _normal(1000, 4), _normal(15, 4, seed=1)
    book = np.concatenate([np.zeros((1, 4)), vectors])
    expected, _ = vq(blocks, book)
    np.testing.assert_array_equal(nearest_vectors(blocks, vectors), expected)
    # Whatever is looked at together.
    monkeypatch.setattr(vector_codebooks, "_DISTANCES", 100)
    np.testing.assert_array_equal(nearest_vectors(blocks, vectors), expected)


def test_means_by_hand():
    blocks = np.float32([[1, 1], [3, 5], [0, 0], [9, 9]])
    vectors = np.float32([[2, 2], [7, 7], [9, 8]])
    found = mean_vectors(blocks, np.array([1, 1, 0, 3]), vectors)
    np.testing.assert_array_equal(found, [[2, 3], [7, 7], [9, 9]])


def test_k_means_finds_what_blocks_were_made_of():
    kinds = _normal(7, 4) * 10
    rng = np.random.default_rng(1)
    blocks = kinds[rng.integers(0, 7, 2000)]
    found = initial_vectors(blocks, 8)
    np.testing.assert_array_equal(np.sort(found, 0), np.sort(kinds, 0))
    noisy = blocks + rng.normal(0, 0.01, blocks.shape).astype("float32")
    error = {
        steps: np.mean(
            (noisy - np.concatenate([np.zeros((1, 4)), v])[nearest_vectors(noisy, v)])
            ** 2
        )
        for steps in (0, 20)
        for v in [initial_vectors(noisy, 8, steps=steps)]
    }
    assert error[20] < error[0]


@pytest.mark.parametrize("gradient", ["sum", "mean", None])
@pytest.mark.parametrize("jit", [False, True])
def test_blocks_become_vectors_and_vectors_get_their_gradients(gradient, jit):
    # Blocks of two along axis 0: (1, 2), (0, 4) in the first column.
    weight = tf.Variable([[1.0, 5.0], [2.0, 6.0], [0.0, 7.0], [4.0, 8.0]])
    vectors = tf.Variable([1.5, 3.0, 6.0, 7.0])
    index = tf.constant([1, 1, 2, 2], tf.uint8)
    upstream = tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])

    @tf.function(jit_compile=jit)
    def run():
        with tf.GradientTape() as tape:
            shared = share_vectors(
                weight, vectors, index, block=2, axis=0, gradient=gradient
            )
        return shared, *tape.gradient(
            shared,
            [weight, vectors],
            output_gradients=upstream,
            unconnected_gradients="zero",
        )

    shared, of_weight, of_vectors = run()
    # The zero among the weights stays, whatever its vector has there.
    np.testing.assert_array_equal(shared, [[1.5, 6], [3, 7], [0, 6], [3, 7]])
    np.testing.assert_array_equal(of_weight, upstream)
    sums = np.array([1.0 + 0, 3 + 7, 2 + 6, 4 + 8])
    expected = {"sum": sums, "mean": sums / 2, None: 0 * sums}[gradient]
    np.testing.assert_array_equal(of_vectors, expected)
