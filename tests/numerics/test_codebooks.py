"""Codebooks of values: nearest values and gradients."""

import numpy as np
import pytest
import tensorflow as tf

from tfcompress.numerics.codebooks import share_values


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _nearest(values, centroids):
    """The nearest of the centroids and zero, by looking at all of them."""
    book = np.append(0, centroids)
    return book[np.abs(values[..., None] - book).argmin(axis=-1)].astype("float32")


@pytest.mark.parametrize("clusters", [2, 3, 16, 100])
@pytest.mark.parametrize("way", ["eager", "graph", "jit"])
def test_each_weight_becomes_the_nearest_value(way, clusters):
    weight, centroids = _normal(50, 40), _normal(clusters - 1, seed=1)
    function = share_values
    if way != "eager":
        function = tf.function(share_values, jit_compile=way == "jit")
    found = function(tf.constant(weight), tf.constant(centroids))
    np.testing.assert_array_equal(found, _nearest(weight, centroids))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("axes", [(-1,), (0,), (1, 2), (-2, -1)])
def test_codebooks_of_channels_serve_these_alone(axes, jit):
    weight = _normal(6, 5, 4)
    kept = sorted(axis % 3 for axis in axes)
    rows = np.moveaxis(weight, kept, range(len(kept)))
    rows = rows.reshape(np.prod(rows.shape[: len(kept)]), -1)
    books = _normal(len(rows), 3, seed=1)
    function = tf.function(share_values, jit_compile=jit)
    found = function(tf.constant(weight), tf.constant(books.ravel()), axes=axes)
    found = np.moveaxis(found.numpy(), kept, range(len(kept))).reshape(rows.shape)
    for one, row, book in zip(found, rows, books, strict=True):
        np.testing.assert_array_equal(one, _nearest(row, book))


@pytest.mark.parametrize("way", ["eager", "graph", "jit"])
@pytest.mark.parametrize(
    ("gradient", "expected"), [("sum", [7.0, 5.0]), ("mean", [3.5, 5.0]), (None, None)]
)
def test_a_centroid_gets_the_gradients_of_its_weights(gradient, expected, way):
    weight = tf.Variable([0.9, -2.1, 0.1, 1.2, 0.0])
    centroids = tf.Variable([1.0, -2.0])
    upstream = tf.constant([3.0, 5.0, 100.0, 4.0, 100.0])

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(
                upstream * share_values(weight, centroids, gradient=gradient)
            )
        return tape.gradient(loss, [weight, centroids], unconnected_gradients="zero")

    if way != "eager":
        gradients = tf.function(gradients, jit_compile=way == "jit")
    of_weight, of_centroids = gradients()
    np.testing.assert_array_equal(of_weight, upstream)
    np.testing.assert_array_equal(of_centroids, expected or [0.0, 0.0])


def test_weights_below_the_threshold_stay_and_move_no_centroid():
    weight = tf.Variable([0.4, 0.9, -2.1, 0.7])
    centroids = tf.Variable([1.0, -2.0])
    with tf.GradientTape() as tape:
        shared = share_values(weight, centroids, gradient="sum", threshold=0.8)
    np.testing.assert_array_equal(shared, np.float32([0.4, 1.0, -2.0, 0.7]))
    upstream = tf.constant([1.0, 2.0, 4.0, 8.0])
    found = tape.gradient(shared, [weight, centroids], output_gradients=upstream)
    np.testing.assert_array_equal(found[0], upstream)
    np.testing.assert_array_equal(found[1], [2.0, 4.0])


@pytest.mark.parametrize("tiny", [1e-38, -1e-38, 1e-45, 0.0])
@pytest.mark.parametrize("jit", [False, True])
def test_zero_stays_zero_beside_the_tiniest_centroid(jit, tiny):
    function = tf.function(share_values, jit_compile=jit)
    found = function(tf.constant([0.0, 2.0]), tf.constant([tiny, 2.0], tf.float32))
    np.testing.assert_array_equal(found, [0.0, 2.0])


def test_xla_holds_nothing_of_the_size_of_weights_times_clusters():
    weight, centroids = tf.zeros(4099), tf.zeros(15)
    function = tf.function(lambda w, c: share_values(w, c), jit_compile=True)
    hlo = function.experimental_get_compiler_ir(weight, centroids)(
        stage="optimized_hlo"
    )
    # What is fused into one loop is not held; the entry lists what is.
    entry = hlo[hlo.index("ENTRY") :]
    assert "4099" in entry
    assert not any(f"4099,{n}]" in entry or f"{n},4099]" in entry for n in (15, 16))
