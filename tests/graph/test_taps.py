"""Outputs of inner layers, seen while a model is called."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import Subclassed, conv_net, image_data

from tfcompress.graph import layer_paths, layer_shapes, one_tensor, recorded


def _nested():
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, name="first"), layers.Dense(4)],
        name="inner",
    )
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(2, name="head")(inner(inputs)))


def test_nested_layers_have_paths_of_their_own():
    assert {"inner", "inner/first", "head"} <= set(layer_paths(_nested()))


@pytest.mark.parametrize("compiled", [False, True])
def test_what_a_nested_layer_returns_is_seen(compiled):
    model = _nested()
    layer = layer_paths(model)["inner/first"]
    x = np.ones((3, 6), "float32")

    def run(x):
        with recorded({"it": layer}) as seen:
            model(x)
        return one_tensor(seen["it"], "it")

    found = tf.function(run)(x) if compiled else run(x)
    # 1e-6: the same operation.
    np.testing.assert_allclose(found, layer(x), atol=1e-6)
    assert "call" not in vars(layer)


def test_threads_that_take_turns_see_their_own_calls_only():
    model = _nested()
    layer = model.get_layer("head")
    inside, done = threading.Event(), threading.Event()
    found = {}

    def other():
        with recorded({"it": layer}) as seen:
            inside.set()
            done.wait(10)
            model(np.zeros((2, 6), "float32"))
        found["other"] = seen["it"]

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    with recorded({"it": layer}) as seen:
        model(np.ones((5, 6), "float32"))
    done.set()
    thread.join()
    assert [x.shape[0] for x in seen["it"]] == [5]
    assert [x.shape[0] for x in found["other"]] == [2]
    assert "call" not in vars(layer)


def test_shapes_are_known_without_running():
    model = conv_net()
    shapes = layer_shapes(model, {"max_pool": model.get_layer("max_pool")})
    assert shapes == {"max_pool": (None, 4, 4, 8)}


def test_a_subclassed_model_has_shapes_once_it_was_called():
    model = Subclassed()
    model(image_data(2)[0])
    shapes = layer_shapes(model, {"conv": model.conv})
    assert shapes == {"conv": (None, 6, 6, 8)}


def test_a_layer_that_is_called_twice_is_refused():
    shared = layers.Dense(6)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, shared(shared(inputs)))
    with pytest.raises(ValueError, match="called 2 times"):
        layer_shapes(model, {"shared": shared})


def test_a_layer_inside_a_function_of_tensorflow_is_refused():
    class Inside(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return tf.function(self.dense)(x)

    inputs = keras.Input((3,))
    outer = Inside()
    model = keras.Model(inputs, outer(inputs))
    with pytest.raises(ValueError, match="Name the layer around it"):
        layer_shapes(model, {"dense": outer.dense})
