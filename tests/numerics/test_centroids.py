"""Where centroids start, and k-means."""

import numpy as np
import pytest

from tfcompress.numerics.centroids import (
    STARTS,
    few_values,
    initial_centroids,
    kmeans_step,
)
from tfcompress.numerics.codebooks import share_values


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _nearest(values, centroids):
    """The nearest of the centroids and zero, by looking at all of them."""
    book = np.append(0, centroids)
    return book[np.abs(values[..., None] - book).argmin(axis=-1)].astype("float32")


def test_starts_by_hand():
    weight = np.float32([-4, -3, -2, -1, 0, 0, 1, 2, 3, 4])
    values = np.float32([-4, -3, -2, -1, 1, 2, 3, 4])

    def start(name, clusters):
        return initial_centroids(weight, clusters, start=name, steps=0)

    np.testing.assert_allclose(start("linear", 5), [-4, -2, 2, 4])
    edges = np.quantile(values, [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(start("density", 5), edges)
    medians = np.quantile(values, [0.1, 0.3, 0.7, 0.9])
    np.testing.assert_allclose(start("quantile", 5), medians)
    assert set(start("random", 5)) < set(values)


@pytest.mark.parametrize("start", STARTS)
def test_k_means_ends_where_each_value_is_the_mean_of_its_weights(start):
    weight = _normal(5000)
    found = initial_centroids(weight, 16, start=start, steps=2000)
    assert found.shape == (15,) and np.all(np.diff(found) > 0)
    # 1e-4: sums of thousands of float32 in another order.
    np.testing.assert_allclose(kmeans_step(weight, found), found, atol=1e-4)
    before = initial_centroids(weight, 16, start=start, steps=0)
    errors = [np.mean((weight - _nearest(weight, c)) ** 2) for c in (before, found)]
    assert errors[1] < errors[0]


def test_both_sides_of_zero_have_centroids_whatever_is_drawn():
    for seed in range(20):
        weight = np.random.default_rng(seed).uniform(-1, 1, 72)
        found = initial_centroids(weight, 5, seed=seed)
        assert found.min() < 0 < found.max()
        # No more than half above the least error of an even grid of five values.
        even = np.mean(
            (weight - _nearest(weight, np.float32([-0.8, -0.4, 0.4, 0.8]))) ** 2
        )
        assert np.mean((weight - _nearest(weight, found)) ** 2) < 1.5 * even


def test_few_values_start_just_there_and_come_out_as_they_were():
    weight = np.random.default_rng(0).choice(
        np.float32([-3, -1, 0, 0.5]), size=(40, 30)
    )
    for clusters in (4, 16):
        centroids = initial_centroids(weight, clusters)
        assert set(centroids) == {-3, -1, 0.5}
        np.testing.assert_array_equal(share_values(weight, centroids), weight)


def test_a_weight_of_zeros_has_somewhere_to_go():
    found = initial_centroids(np.zeros((4, 3)), 5)
    assert len(set(found)) == 4 and not np.any(found == 0)


def test_zeros_of_a_pruned_weight_draw_no_centroid():
    weight = _normal(10_000)
    weight[np.abs(weight) < 1] = 0
    found = initial_centroids(weight, 8)
    assert np.abs(found).min() > 0.9


def test_few_values_and_many():
    assert few_values(np.arange(5.0), 4) is None
    np.testing.assert_array_equal(few_values(np.float32([2, 1, 2]), 2), [1, 2])


def test_a_step_of_k_means_by_hand():
    weight = np.float32([[1, 2, 6, 0], [-1, 8, 0, 10]])
    # Of 0, 3 and 9: 1 and -1 are nearest to 0, 2 to 3, and 6 to the lower of two.
    np.testing.assert_allclose(kmeans_step(weight, np.float32([9, 3])), [9, 4])
    # An own codebook for each row; one without weights stays.
    found = kmeans_step(weight, np.float32([3, 50, 9, -1]), axes=(0,))
    np.testing.assert_allclose(found, [4, 50, 9, -1])
