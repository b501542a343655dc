"""Weights and constants as tensors of a functional model."""

import keras
import numpy as np
import pytest
from keras import ops

from tfcompress.layers import ConstantTensor, Parameter


def test_a_parameter_is_its_weight_whatever_it_is_called_on():
    layer = Parameter((2, 3))
    value = np.arange(6, dtype="float32").reshape(2, 3)
    layer.value.assign(value)
    np.testing.assert_array_equal(layer(np.zeros((7, 1))), value)
    assert layer(keras.Input((9,))).shape == (2, 3)


def test_a_parameter_is_trained():
    layer = Parameter((4, 2))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, ops.matmul(inputs, layer(inputs)))
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    wanted = np.array([[1, 2], [-1, 0], [3, 1], [0, -2]], "float32")
    model.fit(x, x @ wanted, batch_size=32, epochs=25, verbose=0)
    # 0.1: what is left of the way after 25 steps.
    np.testing.assert_allclose(layer.value, wanted, atol=0.1)


def test_a_parameter_may_be_frozen():
    assert not Parameter((3,), trainable=False).trainable_variables


def test_a_parameter_comes_in_the_dtype_that_is_computed_with():
    layer = Parameter((3,), dtype="mixed_float16")
    assert layer(np.zeros(1)).dtype == "float16"
    assert layer(keras.Input((1,))).dtype == "float16"
    assert layer.value.dtype == "float32"


@pytest.mark.parametrize(
    "value, dtype, expected",
    [
        ([[1.5, -2.0]], "float32", "float32"),
        (np.arange(3, dtype="int32"), None, "int32"),
        ([True, False], None, "bool"),
        (np.float32(2.5), None, "float32"),
    ],
)
def test_a_constant_is_its_value_in_its_dtype(value, dtype, expected):
    layer = ConstantTensor(value, dtype)
    found = layer(np.zeros((7, 1)))
    np.testing.assert_array_equal(found, value)
    assert found.dtype == expected
    symbolic = layer(keras.Input((9,)))
    assert (symbolic.shape, symbolic.dtype) == (np.shape(value), expected)
    assert not layer.weights


def test_both_are_saved_and_loaded(tmp_path):
    inputs = keras.Input((3,))
    weight, offset = Parameter((3, 3)), ConstantTensor(np.float32([1, 2, 3]))
    weight.value.assign(np.random.default_rng(0).normal(size=(3, 3)))
    model = keras.Model(inputs, ops.matmul(inputs, weight(inputs)) + offset(inputs))
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    np.testing.assert_array_equal(back(x), model(x))
    for layer in (weight, offset):
        again = type(layer).from_config(layer.get_config())
        assert again.get_config() == layer.get_config()
