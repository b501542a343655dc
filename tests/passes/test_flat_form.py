"""Models and layers of users' own classes, taken apart for surgery."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import Residual, Scaled, examples
from keras import layers, ops

import tfcompress as tfc
from tfcompress.graph import Graph
from tfcompress.passes.lowering.trace import flat_form


@keras.saving.register_keras_serializable(package="tests")
class Stack(layers.Layer):
    """Layers of a user's own in another, with names that recur."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Residual(4), Residual(4)]
        self.head = layers.Conv2D(4, 1, name="head")

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(x)


@keras.saving.register_keras_serializable(package="tests")
class Direct(layers.Layer):
    """Calls TensorFlow, which nobody can record."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x):
        return tf.math.cumsum(self.dense(x), axis=1)


class DropsPaths(layers.Layer):
    """Stochastic depth by operations of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x, training=None):
        y = self.dense(x)
        if training:
            y = y * 0.5
        return y


class AddsLoss(DropsPaths):
    def call(self, x, training=False):
        y = self.dense(x)
        if training:
            self.add_loss(ops.mean(y))
        return y


class AddsNoise(DropsPaths):
    def call(self, x):
        return self.dense(x) + keras.random.normal((4,))


class Repeated(layers.TimeDistributed):
    """One of Keras' own layers, by another name."""


class WithoutConfig(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {}


def _model(*made, shape=(8, 8, 4)):
    x = inputs = keras.Input(shape)
    for layer in made:
        x = layer(x)
    return keras.Model(inputs, x)


def _with_random_statistics(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.2, 0.6, weight.shape))
    return model


def _classes(model):
    return [type(call.operation) for call in Graph(model).calls]


def test_layers_of_layers_are_opened_and_named_after_what_held_them():
    model = _with_random_statistics(_model(Stack(name="one"), Stack(name="two")))
    flat = flat_form(model, open_layers=True)
    assert _classes(flat).count(layers.Conv2D) == 10
    assert not {Stack, Residual} & set(_classes(flat))
    names = [call.operation.name for call in Graph(flat).calls]
    assert len(set(names)) == len(names) and {"one_head", "two_head"} < set(names)
    assert all(name.startswith(("one_", "two_")) for name in names)
    x = examples(model)
    expected = model(x).numpy()
    np.testing.assert_allclose(flat(x), expected, rtol=1e-5)
    trained, other = flat(x, training=True), model(x, training=True)
    np.testing.assert_allclose(trained, other, rtol=1e-4)


def test_a_layer_that_is_called_twice_stays_one():
    inputs = keras.Input((8, 8, 4))
    block = Residual(4, name="block")
    model = keras.Model(inputs, block(block(inputs)))
    flat = flat_form(model, open_layers=True)
    assert _classes(flat).count(layers.Conv2D) == 4
    assert flat.count_params() == model.count_params()
    x = examples(model)
    np.testing.assert_allclose(flat(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        Scaled,
        Direct,
        DropsPaths,
        AddsLoss,
        AddsNoise,
        lambda: Residual(4, activity_regularizer="l2"),
        lambda: Repeated(layers.Dense(4)),
    ],
    ids=[
        "own weights",
        "TensorFlow",
        "dropped paths",
        "loss",
        "noise",
        "activity regularizer",
        "derived",
    ],
)
def test_what_a_recording_would_lose_stays(make):
    layer = make()
    shape = (8, 8, 4) if isinstance(layer, Residual) else (6, 4)
    model = _model(layers.Dense(4), layer, layers.Dense(4), shape=shape)
    assert flat_form(model, open_layers=True) is model
    folded = tfc.fold(model)
    assert _classes(folded) == [layers.Dense, type(layer), layers.Dense]


def test_quantization_says_what_a_layer_does_no_longer(caplog):
    layer = DropsPaths(name="path")
    model = _model(layers.Dense(4), layer, shape=(6, 4))
    tfc.quantize_aware(model)
    assert "1 layer(s)" in caplog.text and "left out: path" in caplog.text


@keras.saving.register_keras_serializable(package="tests")
class Jitters(layers.Layer):
    """Does nothing at inference."""

    def call(self, x, training=None):
        return x + keras.random.normal((4,)) if training else x


@pytest.mark.parametrize("make", [lambda: Residual(4), Jitters])
def test_quantization_says_nothing_of_what_it_keeps(make, caplog):
    model = _model(layers.Conv2D(4, 1), make())
    x = examples(model)
    qat = tfc.quantize_aware(model, calibration_data=x)
    assert not caplog.text
    first, second = (qat(x, training=True).numpy() for _ in range(2))
    # Ranges that are learned in between move the outputs too, by less.
    assert (np.abs(first - second).max() > 1) == (make is Jitters)


def test_without_being_asked_only_models_are_opened():
    assert _classes(flat_form(_model(Residual(4)))) == [Residual]
    assert Residual not in _classes(flat_form(_model(Residual(4)), open_layers=True))


def test_a_layer_without_a_config_is_named():
    model = _model(WithoutConfig(4), layers.Dense(2), shape=(6,))
    with pytest.raises(ValueError, match="(?s)of type WithoutConfig.*get_config"):
        tfc.fold(model)


def test_channels_within_go_and_what_is_left_computes_what_a_mask_would():
    model = _with_random_statistics(_model(Stack(), layers.ReLU()))
    smaller = tfc.prune_channels(model, 0.5)
    assert smaller.count_params() < 0.7 * model.count_params()
    # The first convolution of a block is read by the second alone.
    first = next(la for la in smaller.layers if isinstance(la, layers.Conv2D))
    assert first.filters == 2
    x = examples(model)
    assert np.isfinite(smaller(x)).all()


def test_normalization_within_is_folded_exactly():
    model = _with_random_statistics(_model(Stack()))
    folded = tfc.fold(model)
    assert layers.BatchNormalization not in _classes(folded)
    x = examples(model)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4)


def test_clustering_leaves_the_layer_as_it_is():
    model = _model(Residual(4, name="block"))
    assert isinstance(tfc.strip(tfc.cluster(model, 4)).get_layer("block"), Residual)


def test_a_residual_block_that_is_a_layer_can_be_dropped():
    model = _model(Residual(4), Residual(4), Residual(4))
    x = examples(model)
    smaller = tfc.prune_layers(model, 1, data=x)
    assert _classes(smaller).count(layers.Conv2D) == 4
    assert smaller(x).shape == x.shape
