"""Small models of every structure that the graph package has to read."""

import keras
import numpy as np
from keras import layers


def randomized(model, seed=0):
    """Gives every weight, batch statistics included, a value of its own."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if keras.backend.is_float_dtype(variable.dtype):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def nested():
    """A functional block in a functional model, a Sequential inside the block."""
    inner_in = keras.Input((6,), name="inner_in")
    head = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, name="dense"), layers.ReLU(name="relu")],
        name="head",
    )
    x = layers.Dense(5, name="dense")(inner_in)
    x = layers.BatchNormalization(name="bn")(x)
    block = keras.Model(inner_in, head(x), name="block")
    inputs = keras.Input((6,), name="x")
    y = block(layers.Dense(6, name="dense")(inputs))
    return randomized(keras.Model(inputs, layers.Dense(2, name="out")(y), name="outer"))


def shared():
    """A layer and a nested model that are each called twice."""
    block = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, activation="relu", name="dense")],
        name="tower",
    )
    twice = layers.Dense(4, name="twice")
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    outputs = layers.Add(name="add")([twice(block(a)), twice(block(b))])
    return randomized(keras.Model([a, b], outputs, name="siamese"))


def dictionaries():
    """Inputs and outputs in dicts; the model inside has such, too."""
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    inner = keras.Model(
        {"left": left, "right": right},
        {
            "sum": layers.Dense(4, name="l")(left) + layers.Dense(4, name="r")(right),
            "left": layers.Dense(3, name="again")(left),
        },
        name="inner",
    )
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    found = inner({"left": left, "right": right})
    outputs = {
        "first": layers.Dense(2, name="first")(found["sum"]),
        "second": layers.Dense(1, name="second")(found["left"]),
    }
    model = keras.Model({"left": left, "right": right}, outputs, name="dicts")
    return randomized(model)


def operators():
    """Arithmetic on tensors between layers."""
    inputs = keras.Input((3,), name="x")
    y = layers.Dense(4, name="dense")(inputs * 2 + 1)
    y = keras.ops.relu(y) - keras.ops.mean(y, axis=-1, keepdims=True)
    outputs = keras.ops.concatenate([y, inputs], axis=-1)[:, 1:5]
    return randomized(keras.Model(inputs, outputs, name="operators"))


def with_state():
    """Layers with state beyond trainable weights."""
    normalize = layers.Normalization(name="normalize")
    normalize.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)).astype("float32"))
    inputs = keras.Input((4,), name="x")
    y = layers.Dense(3, name="dense")(normalize(inputs))
    y = layers.BatchNormalization(name="bn")(y)
    model = keras.Model(inputs, layers.Dropout(0.5, name="drop")(y), name="state")
    for variable in model.get_layer("bn").weights:
        variable.assign(np.linspace(0.5, 2, 3))
    return model


def recurrent():
    """Layers made of layers."""
    inputs = keras.Input((5, 3), name="x")
    y = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(inputs)
    y = layers.TimeDistributed(layers.Dense(2), name="each")(y)
    y = layers.MultiHeadAttention(2, 3, name="attention")(y, y)
    return randomized(keras.Model(inputs, layers.Flatten()(y), name="recurrent"))


def sequential():
    """A Sequential with another one inside."""
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a")], name="in")
    stack = [keras.Input((4,), name="x"), layers.Dense(4, name="a"), inner]
    return randomized(keras.Sequential(stack, name="stack"))


ALL = {
    build.__name__: build
    for build in (
        nested,
        shared,
        dictionaries,
        operators,
        with_state,
        recurrent,
        sequential,
    )
}


class Subclassed(keras.Model):
    """A model without a graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(4)
        self.second = layers.Dense(2)

    def call(self, x):
        return self.second(self.first(x))


def examples(model, batch=4, seed=1):
    """Random inputs in the structure that the model takes."""
    rng = np.random.default_rng(seed)
    struct = getattr(model, "_inputs_struct", model.inputs[0])
    return keras.tree.map_structure(
        lambda t: rng.normal(size=(batch, *t.shape[1:])).astype("float32"), struct
    )


def outputs(model, x, training=False):
    """Outputs as numpy arrays, in the structure that the model gives."""
    return keras.tree.map_structure(
        keras.ops.convert_to_numpy, model(x, training=training)
    )


def assert_same(found, expected):
    """Equal structure and equal values, to the last bits of float32.

    The same operations run in the same order, yet XNNPACK-free CPU kernels may split a
    matrix product by the alignment of its buffers: 1e-6.
    """
    keras.tree.assert_same_structure(found, expected)
    for a, b in zip(
        keras.tree.flatten(found), keras.tree.flatten(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
