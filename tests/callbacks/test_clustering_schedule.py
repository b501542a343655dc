"""`tfc.ClusteringSchedule`: when weights join, and when k-means moves centroids."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.callbacks.clustered_weights import clustered_weights
from tfcompress.numerics.centroids import kmeans_step


def _frozen(model):
    """Compiled so that no step changes a weight: what moves, the callback moved."""
    return compiled(model, optimizer=keras.optimizers.SGD(0.0))


class _Look(keras.callbacks.Callback):
    """Notes after each batch what part of a kernel has values of its codebook."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        wrapper = self.model.get_layer("hidden")
        kernel = wrapper.effective_weights()["kernel"]
        values = [0, *wrapper.states["kernel"][0]["centroids"].numpy()]
        self.seen.append(np.mean(np.isin(kernel, np.float32(values))))


def test_the_largest_weights_join_first_and_all_in_the_end():
    x, y = image_data(96)
    shared = _frozen(tfc.cluster(conv_net(), 8))
    look = _Look()
    schedule = tfc.ClusteringSchedule({1: 0.25, 3: 0.5, 5: 1.0})
    history = shared.fit(
        x, y, batch_size=32, epochs=2, verbose=0, callbacks=[schedule, look]
    ).history
    np.testing.assert_allclose(look.seen, [0.25, 0.25, 0.5, 0.5, 1, 1], atol=0.01)
    assert history["clustered"] == [pytest.approx(0.5, abs=0.01), 1]
    weight = clustered_weights(shared)[2]
    weight.join(0.25)
    kernel = np.abs(weight.latent.numpy())
    joined = np.abs(weight.members()) > 0
    assert kernel[joined].min() >= kernel[~joined].max()


def test_a_schedule_rises_every_so_many_steps():
    x, y = image_data(96)
    shared = _frozen(tfc.cluster(conv_net(), 8))
    curve = tfc.schedules.Polynomial(0.0, 1.0, end=5, power=1)
    look = _Look()
    shared.fit(
        x,
        y,
        batch_size=32,
        epochs=2,
        verbose=0,
        callbacks=[tfc.ClusteringSchedule(curve, frequency=2), look],
    )
    np.testing.assert_allclose(look.seen, [0, 0.4, 0.4, 0.8, 1, 1], atol=0.01)


def test_k_means_is_that_of_the_weights_and_due_every_so_many_steps():
    x, y = image_data(96)
    shared = _frozen(tfc.cluster(conv_net(), 4, start="linear", steps=0, gradient=None))
    wrapper = shared.get_layer("hidden")
    kernel = wrapper.layer.kernel.numpy()
    centroids = wrapper.states["kernel"][0]["centroids"]
    expected = centroids.numpy()
    schedule = tfc.ClusteringSchedule(kmeans_every=2)
    shared.fit(x, y, batch_size=32, epochs=1, verbose=0, callbacks=[schedule])
    expected = kmeans_step(kernel, expected)  # Once in three steps.
    np.testing.assert_array_equal(centroids.numpy(), expected)
    shared.fit(
        x, y, batch_size=32, epochs=2, initial_epoch=1, verbose=0, callbacks=[schedule]
    )
    # Steps 4 and 6 of a run of six.
    expected = kmeans_step(kernel, kmeans_step(kernel, expected))
    np.testing.assert_array_equal(centroids.numpy(), expected)


def test_k_means_of_a_group_and_of_blocks():
    x, y = image_data(96)
    shared = _frozen(
        tfc.cluster(
            conv_net(),
            8,
            start="random",
            steps=0,
            rules=[
                tfc.Rule("conv|classifier", group="both"),
                tfc.Rule("hidden", block=4, clusters=16),
            ],
        )
    )
    weights = {w.latent.path: w for w in clustered_weights(shared)}
    hidden = weights["hidden/kernel"]
    group = weights["conv/kernel"].group
    assert group is weights["classifier/kernel"].group is not None
    values = np.concatenate(
        [weights[f"{n}/kernel"].latent.numpy().ravel() for n in ("conv", "classifier")]
    )
    expected = kmeans_step(values, group.codebook.numpy())

    def error():
        found = tfc.strip(shared).get_layer("hidden").kernel.numpy()
        return np.mean((found - hidden.latent.numpy()) ** 2)

    before = error()
    schedule = tfc.ClusteringSchedule(kmeans_every=3)
    shared.fit(x, y, batch_size=32, verbose=0, callbacks=[schedule])
    np.testing.assert_array_equal(group.codebook.numpy(), expected)
    assert error() < before


@pytest.mark.slow
def test_the_model_keeps_what_is_in_force(tmp_path):
    x, y = image_data(96)
    shared = _frozen(tfc.cluster(conv_net(), 8))
    schedule = tfc.ClusteringSchedule({0: 0.5, 100: 1.0})
    shared.fit(x, y, verbose=0, callbacks=[schedule])
    shared.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    assert clustered_weights(back)[2].fraction == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(
        back.predict(x, verbose=0), shared.predict(x, verbose=0)
    )


def test_config_round_trip():
    for fraction in (None, {0: 0.5, 9: 1}, tfc.schedules.Cosine(0, 1.0, end=9)):
        made = tfc.ClusteringSchedule(fraction, kmeans_every=5, frequency=7)
        config = keras.saving.serialize_keras_object(made)
        back = keras.saving.deserialize_keras_object(config, safe_mode=True)
        assert back.get_config() == made.get_config()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "nothing to do"),
        ({"fraction": 0.5}, TypeError, "must be a schedule"),
        ({"fraction": {}}, ValueError, "must rise within"),
        ({"fraction": {0: 0.5}}, ValueError, "end at 1"),
        ({"fraction": {0: 0.7, 1: 0.5, 2: 1.0}}, ValueError, "must rise"),
        ({"fraction": {-1: 1.0}}, ValueError, "Steps must be 0 or more"),
        ({"kmeans_every": 0}, ValueError, "must be 1 or more"),
        ({"kmeans_every": 1.5}, TypeError, "whole number of steps"),
        ({"kmeans_every": 1, "frequency": True}, TypeError, "whole number of steps"),
    ],
)
def test_arguments_out_of_place(arguments, error, text):
    with pytest.raises(error, match=text):
        tfc.ClusteringSchedule(**arguments)


def test_models_out_of_place():
    x, y = image_data(32)
    schedule = tfc.ClusteringSchedule({0: 1.0})
    with pytest.raises(ValueError, match="no clustered weights"):
        compiled(conv_net()).fit(x, y, verbose=0, callbacks=[schedule])
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(4)(inputs))
    blocks = tfc.cluster(model, 4, block=2)
    blocks.compile("sgd", "mse")
    with pytest.raises(ValueError, match="clustered in blocks"):
        blocks.fit(np.zeros((4, 8)), np.zeros((4, 4)), verbose=0, callbacks=[schedule])
