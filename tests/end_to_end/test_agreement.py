"""The file computes what was trained: operation by operation, and end to end."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import compiled

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner

SHAPE = (12, 10, 8)

# Operation -> (layers, share of equal int8 values with XNNPACK kernels).
OPERATIONS = {
    "conv": (lambda x: layers.Conv2D(8, 3, padding="same")(x), 1.0),
    "conv, strides": (
        lambda x: layers.Conv2D(8, 3, strides=2, activation="relu")(x),
        1.0,
    ),
    "conv, dilation": (lambda x: layers.Conv2D(8, 3, dilation_rate=2)(x), 1.0),
    "pointwise, relu6": (lambda x: layers.Conv2D(16, 1, activation="relu6")(x), 1.0),
    "conv, batch norm, relu": (
        # Folding sums the same numbers in another order.
        lambda x: layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3)(x))),
        0.999,
    ),
    "depthwise": (lambda x: layers.DepthwiseConv2D(3, padding="same")(x), 1.0),
    "depthwise, multiplier": (
        lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x),
        1.0,
    ),
    "dense": (lambda x: layers.Dense(7)(layers.Flatten()(x)), 1.0),
    "add": (lambda x: layers.Add()([x, layers.MaxPooling2D(1)(x)]), 1.0),
    "max pool": (lambda x: layers.MaxPooling2D(2)(x), 1.0),
    "padding": (lambda x: layers.ZeroPadding2D(1)(x), 1.0),
    "reshape": (lambda x: layers.Reshape((10, 96))(x), 1.0),
    # At most one step elsewhere: the kernels round a fixed-point quotient.
    "average pool": (lambda x: layers.AveragePooling2D(2)(x), 0.9),
    "global average": (lambda x: layers.GlobalAveragePooling2D()(x), 0.9),
    "concatenate": (
        lambda x: layers.Concatenate()([x, layers.Conv2D(4, 1)(x)]),
        0.99,
    ),
    "softmax": (lambda x: layers.Softmax()(layers.GlobalAveragePooling2D()(x)), 0.9),
    "sigmoid": (lambda x: layers.Activation("sigmoid")(x), 0.9),
    "tanh": (lambda x: layers.Activation("tanh")(x), 0.9),
    "leaky relu": (lambda x: layers.LeakyReLU(negative_slope=0.1)(x), 0.9),
    "prelu": (
        lambda x: layers.PReLU(
            shared_axes=[1, 2],
            alpha_initializer=keras.initializers.RandomUniform(0.05, 0.3),
        )(x),
        0.9,
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_agrees_on_equal_inputs(name, tmp_path):
    layer, share = OPERATIONS[name]
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, layer(inputs))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "gamma" in variable.path or "moving_variance" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif "beta" in variable.path or "moving_mean" in variable.path:
            variable.assign(rng.normal(0, 0.2, variable.shape))
    x = rng.normal(size=(64, *SHAPE)).astype("float32")
    qat = tfc.quantize_aware(model, calibration_data=x)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    runner = TFLiteRunner(result.path)
    found = runner.integers([x])[0].astype(int)
    scale, zero_point = runner.outputs[0]["quantization"]
    expected = np.round(qat.predict(x, verbose=0) / scale).astype(int) + zero_point
    assert np.abs(found - expected).max() <= 1
    # 64 clips of 500 to 10,000 values; a value within float rounding of the border
    # between two steps may fall to either.
    assert np.mean(found == expected) >= share - 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("network", ["ds_cnn", "resnet8"])
def test_a_trained_network_agrees_end_to_end(network, tmp_path):
    rng = np.random.default_rng(0)
    size = (49, 10, 1) if network == "ds_cnn" else (32, 32, 3)
    patterns = rng.normal(size=(10, *size))
    y = rng.integers(0, 10, 800)
    x = (patterns[y] + rng.normal(size=(800, *size))).astype("float32")
    model = compiled(getattr(tfc.zoo, network)(size, 10))
    model.fit(x[:600], y[:600], batch_size=50, epochs=10, verbose=0)
    qat = compiled(
        tfc.quantize_aware(model, calibration_data=x[:100]),
        optimizer=keras.optimizers.Adam(1e-3),
    )
    qat.fit(x[:600], y[:600], batch_size=50, epochs=1, verbose=0)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    found = TFLiteRunner(result.path).predict([x[600:]])[0]
    expected = qat.predict(x[600:], verbose=0)
    assert np.mean(found.argmax(1) == expected.argmax(1)) >= 0.99
    assert np.mean(found.argmax(1) == y[600:]) > 0.9
