"""A ReLU computed together with the rounding behind it gives what both give apart."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tfcompress.layers import FakeQuant, fake_quant
from tfcompress.numerics.affine import fake_quantize
from tfcompress.numerics.joined_relu import relu_before

VALUES = [-7.0, -1e-3, 0.0, 1e-40, 1e-3, 3.99, 4.01, 5.9, 6.0, 6.1, 9.5, np.inf]
RELUS = [
    tf.nn.relu,
    tf.nn.relu6,
    keras.layers.ReLU(),
    keras.layers.ReLU(6.0),
    keras.layers.Activation("relu"),
]


def slope_at_the_relus_output(function, x, training=True):
    """Of the function of a ReLU's output, by that output; `None` if none gets there."""

    @tf.function
    def slope(x):
        with tf.GradientTape() as tape:
            y = tf.nn.relu(x)
            tape.watch(y)
            z = function(y, training=training)
        return tape.gradient(z, y)

    return slope(x)


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("relu", RELUS, ids=lambda f: getattr(f, "name", "tf"))
@pytest.mark.parametrize("low, high", [(0.0, 4.0), (0.0, 9.0), (-1.0, 4.0), (0.0, 0.0)])
@pytest.mark.parametrize("width", [1, 3000], ids=["small", "large"])
def test_values_and_gradients_are_those_of_both_apart(relu, low, high, active, width):
    x = tf.repeat(tf.constant(VALUES)[:, None], width, axis=1)

    @tf.function
    def slopes(x, active, joined):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = relu(x)
            before = relu_before(y) if joined else None
            assert (before is not None) == joined
            z = fake_quantize(y, low, high, active=active, relu=before)
            loss = z * tf.reshape(tf.range(tf.size(z), dtype=tf.float32), z.shape)
        return z, tape.gradient(loss, x)

    on = tf.constant(active)
    for one, other in zip(slopes(x, on, True), slopes(x, on, False), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_relu_of_the_graph_at_hand_is_found_and_no_other():
    found = {}

    @tf.function
    def outer(x):
        y = tf.nn.relu(x)
        found["relu"] = relu_before(y)
        found["relu6"] = relu_before(tf.nn.relu6(x))
        found["tanh"] = relu_before(tf.nn.tanh(x))
        found["half"] = relu_before(tf.nn.relu(tf.cast(x, tf.float16)))

        @tf.function
        def inner():
            found["of another graph"] = relu_before(y)

        inner()
        return y

    outer(tf.constant([1.0]))
    assert found["relu"].source.name.startswith("x")
    assert found["relu"].highest == np.inf and found["relu6"].highest == 6
    assert not any(found[k] for k in ("tanh", "half", "of another graph"))
    assert relu_before(tf.nn.relu(tf.constant([1.0]))) is None


def test_what_else_reads_the_relu_keeps_its_gradient():
    @tf.function
    def slopes(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nn.relu(x)
            z = fake_quantize(y, 0.0, 4.0, relu=relu_before(y)) + 10 * y
        return tape.gradient(z, x)

    found = slopes(tf.constant([-1.0, 2.0, 5.0])).numpy().tolist()
    assert found == [0.0, 11.0, 10.0]


def test_what_is_known_of_the_shape_stays_known():
    @tf.function(input_signature=[tf.TensorSpec((None, None))])
    def shape(x):
        y = tf.nn.relu(x)
        y.set_shape((None, 5))
        assert fake_quantize(y, 0.0, 4.0, relu=relu_before(y)).shape == (None, 5)
        return x

    shape.get_concrete_function()


@pytest.mark.parametrize(
    "settings, width, joins",
    [
        ({"joins_relu": True}, 3000, True),
        ({"joins_relu": True}, 30, False),
        ({"joins_relu": True, "symmetric": True}, 3000, False),
        ({"joins_relu": True, "power_of_two": True}, 3000, False),
        ({}, 3000, False),
    ],
)
def test_it_is_joined_where_that_costs_less(settings, width, joins):
    layer = FakeQuant(**settings)
    layer.set_range(0, 0.0, 4.0)

    found = slope_at_the_relus_output(layer, tf.ones((2, width)))
    assert (found is None) == joins


def test_the_models_own_relus_are_joined_and_not_what_it_is_given():
    inputs = keras.Input((3000,))
    h = keras.layers.Dense(2100, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(h))
    qat = tfc.quantize_aware(model)
    layers = [layer for layer in qat.layers if isinstance(layer, FakeQuant)]
    joins = {layer.name: layer.joins_relu for layer in layers}
    assert joins.pop(f"{inputs.name}_quant") is False
    assert joins and all(joins.values())

    assert slope_at_the_relus_output(qat, tf.ones((2, 3000))) is not None


@pytest.mark.parametrize("wrap", [tf.constant, tf.Variable])
def test_tensors_from_outside_the_step_are_taken(wrap):
    layer = FakeQuant(joins_relu=True)
    x = wrap(np.ones((2, 3000), "float32"))
    found = tf.function(lambda: layer(x, training=True))()
    np.testing.assert_array_equal(found, x)


def test_outside_training_the_gradient_reaches_the_output_of_the_relu():
    layer = FakeQuant(joins_relu=True)
    layer.set_range(0, 0.0, 4.0)

    x = tf.repeat(tf.constant([[-1.0, 2.0, 5.0]]), 1000, axis=1)
    slopes = slope_at_the_relus_output(layer, x, training=False).numpy()
    np.testing.assert_array_equal(slopes, np.repeat([[1.0, 1.0, 0.0]], 1000, axis=1))


@pytest.mark.parametrize("relu", [tf.nn.relu, tf.nn.relu6])
@pytest.mark.parametrize("sites", [1, 2])
def test_a_quantizer_sees_the_ranges_of_what_the_relu_gives(relu, sites, monkeypatch):
    rng = np.random.default_rng(0)
    batches = [rng.normal(-1, scale, (4, 3000)) for scale in (0.1, 1, 2, 9)]
    batches += [np.zeros((0, 3000)), np.full((4, 3000), np.nan), [[np.inf, -1]]]
    seen = []

    def ranges():
        layer = FakeQuant(sites=sites, joins_relu=True)
        if sites == 2:
            layer.set_range(1, -1.0, 1.0)

        @tf.function(input_signature=[tf.TensorSpec((None, None))])
        def step(x):
            seen.append(fake_quant.relu_before(relu(x)) is not None)
            return layer(relu(x), training=True)

        outputs = [step(tf.constant(x, tf.float32)).numpy() for x in batches]
        return layer.observed.numpy(), *outputs

    joined = ranges()
    monkeypatch.setattr(fake_quant, "relu_before", lambda x: None)
    for one, other in zip(joined, ranges(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert seen == [True, False]


def test_a_step_of_training_gives_the_same_weights(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 12, 12, 3)).astype("float32")
    y = rng.integers(0, 4, 16)

    def trained():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((12, 12, 3))
        h = keras.layers.Conv2D(24, 3, padding="same")(inputs)
        h = keras.layers.ReLU()(h)
        h = FakeQuant(joins_relu=True)(h)
        h = keras.layers.Conv2D(24, 3, padding="same", activation="relu6")(h)
        h = FakeQuant(joins_relu=True)(h)
        outputs = keras.layers.Dense(4)(keras.layers.Flatten()(h))
        model = keras.Model(inputs, outputs)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
        model.fit(x, y, epochs=3, batch_size=8, shuffle=False, verbose=0)
        return model.get_weights()

    found = []

    def spied(x):
        relu = relu_before(x)
        found.append(relu)
        return relu

    monkeypatch.setattr(fake_quant, "relu_before", spied)
    joined = trained()
    assert len([relu for relu in found if relu is not None]) >= 2
    monkeypatch.setattr(fake_quant, "relu_before", lambda x: None)
    for one, other in zip(joined, trained(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
