"""TensorFlow functions in graphs of Keras 2: every entry against TensorFlow itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tfcompress.legacy.functions import _FUNCTIONS, CLASSES, _key

tf_keras = pytest.importorskip("tf_keras")

# Entry -> a function of a tensor (4, 4, 8) with batch 2, above zero, that has it.
_CALLS = {
    "__operators__.add": lambda x: x + 2.0,
    "__operators__.getitem": lambda x: x[:, tf.newaxis, ..., ::2],
    "cast": lambda x: tf.cast(tf.cast(x * 3, tf.int32), "float32"),
    "clip_by_value": lambda x: tf.clip_by_value(x, 0.2, 0.6),
    "concat": lambda x: tf.concat([x, x], -1),
    "expand_dims": lambda x: tf.expand_dims(x, 1),
    "identity": tf.identity,
    "image.resize": lambda x: tf.image.resize(x, (8, 8)),
    "linalg.matmul": lambda x: tf.matmul(x, x, transpose_b=True),
    "math.abs": lambda x: abs(x - 0.5),
    "math.add": lambda x: tf.add(x, y=x),
    "math.argmax": lambda x: tf.argmax(x, -1),
    "math.exp": tf.exp,
    "math.greater": lambda x: tf.cast(x > 0.5, tf.float32),
    "math.l2_normalize": lambda x: tf.math.l2_normalize(x, -1),
    "math.log": tf.math.log,
    "math.maximum": lambda x: tf.maximum(0.5, x),
    "math.minimum": lambda x: tf.minimum(x, 0.5),
    "math.multiply": lambda x: tf.multiply(x, x),
    "math.negative": tf.negative,
    "math.pow": lambda x: x**2.0,
    "math.reduce_max": lambda x: tf.reduce_max(x, 1, keepdims=True),
    "math.reduce_mean": lambda x: tf.reduce_mean(x, [1, 2]),
    "math.reduce_min": lambda x: tf.reduce_min(x, axis=-1),
    "math.reduce_sum": lambda x: tf.reduce_sum(x, axis=-1),
    "math.rsqrt": tf.math.rsqrt,
    "math.sigmoid": tf.sigmoid,
    "math.sqrt": tf.sqrt,
    "math.square": tf.square,
    "math.subtract": lambda x: tf.subtract(x, 0.5),
    "math.tanh": tf.tanh,
    "math.truediv": lambda x: tf.math.truediv(x, 2.0),
    "nn.depth_to_space": lambda x: tf.nn.depth_to_space(x, 2),
    "nn.elu": lambda x: tf.nn.elu(x - 0.5),
    "nn.gelu": lambda x: tf.nn.gelu(x, approximate=True),
    "nn.leaky_relu": lambda x: tf.nn.leaky_relu(x - 0.5, alpha=0.3),
    "nn.relu": lambda x: tf.nn.relu(features=x - 0.5),
    "nn.relu6": lambda x: tf.nn.relu6(x * 10),
    "nn.silu": tf.nn.swish,
    "nn.softmax": lambda x: tf.nn.softmax(x, axis=1),
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]], constant_values=3.0),
    "reshape": lambda x: tf.reshape(x, (-1, 2, 64)),
    "shape": lambda x: tf.reshape(x, (tf.shape(x)[0], -1)),
    "split": lambda x: tf.split(x, [1, 7], axis=-1)[1],
    "squeeze": lambda x: tf.squeeze(x[:, :1], 1),
    "stack": lambda x: tf.stack([x, x], axis=1),
    "stop_gradient": tf.stop_gradient,
    "transpose": lambda x: tf.transpose(x, [0, 3, 1, 2]),
    "unstack": lambda x: tf.unstack(x, axis=1)[2],
    "where": lambda x: tf.where(x > 0.5, x, 0.1 * x),
}


@pytest.mark.parametrize("name", sorted(_FUNCTIONS))
def test_function_computes_what_tensorflows_does(name):
    inputs = tf_keras.Input((4, 4, 8))
    old = tf_keras.Model(inputs, _CALLS[name](inputs))
    # An entry that Keras 2 never writes would be dead.
    written = [
        _key(layer["config"].get("function", "__operators__.getitem"))
        for layer in old.get_config()["layers"]
        if layer["class_name"] in CLASSES
    ]
    assert name in written
    x = np.random.default_rng(0).uniform(0.1, 1, (2, 4, 4, 8)).astype("float32")
    expected = _CALLS[name](tf.constant(x))
    new = tfc.from_tfmot(old)(x)
    assert new.dtype == expected.dtype
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)


def test_all_functions_without_counterpart_are_named():
    inputs = tf_keras.Input((4,))
    x = tf.math.erf(inputs) + tf.math.cosh(inputs)
    with pytest.raises(ValueError, match=r"(?s)tf\.math\.erf.*tf\.math\.cosh"):
        tfc.from_tfmot(tf_keras.Model(inputs, x))


def test_all_calls_without_counterpart_are_named():
    inputs = tf_keras.Input((4, 4, 3))
    x = tf.image.resize(inputs, (8, 8), antialias=True)
    y = tf.nn.relu(inputs) * tf.cast(tf.shape(inputs)[0] * 2, tf.float32)
    with pytest.raises(ValueError, match="antialias") as error:
        tfc.from_tfmot(tf_keras.Model(inputs, [x, y]))
    assert "computes with what tf.shape gave" in str(error.value)


def test_shape_of_another_tensor_is_not_taken_for_that_of_this_one():
    inputs = tf_keras.Input((4, 8))
    x = tf.reshape(inputs, (-1, 8))
    x = tf.reshape(x, (tf.shape(inputs)[0], -1, 8))
    with pytest.raises(ValueError, match="has two unknown lengths"):
        tfc.from_tfmot(tf_keras.Model(inputs, x))


def test_known_lengths_of_a_shape_are_numbers():
    inputs = tf_keras.Input((4, 8))
    shape = tf.shape(inputs)
    x = tf.reshape(inputs, (-1, shape[2], shape[1]))
    x = tf.reshape(tf.reshape(x, (shape[0], 32)), tf.shape(inputs))
    new = tfc.from_tfmot(tf_keras.Model(inputs, x))
    x = np.random.default_rng(0).normal(size=(3, 4, 8)).astype("float32")
    np.testing.assert_array_equal(new(x), x)


def test_names_of_operations_leave_those_of_layers_alone():
    inputs = tf_keras.Input((4,))
    x = tf_keras.layers.Dense(4, name="add")(inputs)
    old = tf_keras.Model(inputs, x + tf_keras.layers.Dense(4, name="add_1")(x) + inputs)
    keras.backend.clear_session()
    new = tfc.from_tfmot(old)
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(new(x), old(x), rtol=1e-6)
    assert new.get_layer("add").units == new.get_layer("add_1").units == 4
