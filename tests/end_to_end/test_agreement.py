"""The file computes what was trained: operation by operation, and end to end."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from networks import compiled

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.layers import FakeQuant

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
    # At most one step elsewhere: the kernels round a fixed-point quotient. A quarter of
    # the means of four integers lie half way between two.
    "average pool": (lambda x: layers.AveragePooling2D(2)(x), 0.8),
    "global average": (lambda x: layers.GlobalAveragePooling2D()(x), 0.9),
    "concatenate": (
        lambda x: layers.Concatenate()([x, layers.Conv2D(4, 1)(x)]),
        0.99,
    ),
    "softmax": (lambda x: layers.Softmax()(layers.GlobalAveragePooling2D()(x)), 0.9),
    "sigmoid": (lambda x: layers.Activation("sigmoid")(x), 0.9),
    "tanh": (lambda x: layers.Activation("tanh")(x), 0.9),
    "leaky relu": (lambda x: layers.LeakyReLU(negative_slope=0.1)(x), 0.9),
    "grouped": (lambda x: layers.Conv2D(8, 3, groups=2)(x), 1.0),
    "conv1d": (
        lambda x: layers.Conv1D(6, 3)(layers.Reshape((12, 80))(x)),
        1.0,
    ),
    "depthwise conv1d": (
        lambda x: layers.DepthwiseConv1D(3)(layers.Reshape((12, 80))(x)),
        1.0,
    ),
    "conv3d": (
        # Built of one conv over slices that are joined.
        lambda x: layers.Conv3D(6, 3)(layers.Reshape((6, 10, 8, 2))(x)),
        1.0,
    ),
    "transposed conv": (lambda x: layers.Conv2DTranspose(6, 3, strides=2)(x), 0.99),
    "batch norm alone": (lambda x: layers.BatchNormalization()(x), 0.999),
    "batch norm, relu": (
        lambda x: layers.ReLU()(layers.BatchNormalization()(x)),
        0.999,
    ),
    "rescaling": (lambda x: layers.Rescaling(0.3, 0.1)(x), 0.999),
    "subtract": (lambda x: layers.Subtract()([x, ops.flip(x, 1)]), 0.9),
    "multiply": (lambda x: layers.Multiply()([x, ops.flip(x, 1)]), 0.9),
    "constant operands": (lambda x: x * 0.7 + 0.3, 0.9),
    "maximum": (lambda x: layers.Maximum()([x, ops.flip(x, 1)]), 0.99),
    "minimum, constant": (lambda x: ops.minimum(x, 0.5), 0.99),
    "matrix product": (
        lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))),
        0.9,
    ),
    "mean of an axis": (lambda x: ops.mean(x, axis=-1), 0.9),
    "sum": (lambda x: ops.sum(x, axis=-1), 0.9),
    "largest": (lambda x: ops.max(x, axis=-1), 0.99),
    "absolute": (lambda x: ops.abs(x), 0.9),
    "exp": (lambda x: ops.exp(x), 0.9),
    "gelu": (lambda x: layers.Activation("gelu")(x), 0.9),
    "hard swish": (lambda x: layers.Activation("hard_swish")(x), 0.5),
    "log softmax": (lambda x: layers.Activation("log_softmax")(x), 0.9),
    "relu6": (lambda x: layers.ReLU(6.0)(x), 0.99),
    "slice and stack": (
        lambda x: ops.stack([x[:, ::2], x[:, 1::2]], axis=1),
        1.0,
    ),
    "where": (lambda x: ops.where(ops.greater(x, 0.2), x, -1.0), 0.99),
    "upsampling": (lambda x: layers.UpSampling2D()(x), 1.0),
    "resizing": (lambda x: layers.Resizing(6, 5)(x), 0.8),
    "transposition": (lambda x: layers.Permute((2, 1, 3))(x), 1.0),
    "prelu": (
        lambda x: layers.PReLU(
            shared_axes=[1, 2],
            alpha_initializer=keras.initializers.RandomUniform(0.05, 0.3),
        )(x),
        0.9,
    ),
}


# The others are slow tests: there are many, of two seconds each.
QUICK = (
    "conv",
    "conv, batch norm, relu",
    "depthwise",
    "dense",
    "add",
    "average pool",
    "concatenate",
    "batch norm alone",
    "transposed conv",
    "matrix product",
    "softmax",
)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in OPERATIONS
    ],
)
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
    found, expected = _integers(model, x, tmp_path)
    assert np.abs(found - expected).max() <= 1
    # 64 clips of 500 to 10,000 values; a value within float rounding of the border
    # between two steps may fall to either.
    assert np.mean(found == expected) >= share - 2e-4


@pytest.mark.parametrize(
    "name",
    [
        "depthwise",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("conv", "pointwise, relu6", "dense", "grouped", "conv3d")
        ),
    ],
)
def test_a_bias_moves_one_value_in_a_thousand_by_a_step(name, tmp_path):
    """Files hold biases as integers; training leaves them as they are."""
    layer, _ = OPERATIONS[name]
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, layer(inputs))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "bias" in variable.path:
            variable.assign(rng.normal(0, 0.2, variable.shape))
    x = rng.normal(size=(64, *SHAPE)).astype("float32")
    found, expected = _integers(model, x, tmp_path)
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found == expected) >= 0.998


def _integers(model, x, folder):
    """What the file puts out, and what the quantization-aware model does."""
    qat = tfc.quantize_aware(model, calibration_data=x)
    result = tfc.export_tflite(qat, folder / "m.tflite", kind="int8")
    runner = TFLiteRunner(result.path)
    found = runner.integers([x])[0].astype(int)
    scale, zero_point = runner.outputs[0]["quantization"]
    expected = np.round(qat.predict(x, verbose=0) / scale).astype(int) + zero_point
    return found, expected


def test_pixels_between_minus_one_and_one_are_the_same_integers(tmp_path):
    """With 256 values and no other care, 0 lies half way between two of them."""
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, layers.Conv2D(8, 3, padding="same")(inputs))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3))
    x = (pixels / 127.5 - 1).astype("float32")
    assert (x.min(), x.max()) == (-1, 1)
    found, expected = _integers(model, x, tmp_path)
    assert np.mean(found == expected) >= 0.9999


@pytest.mark.parametrize("width", [0.3, 1.0, 2.7, 3.0])
def test_a_grid_without_0_is_moved_as_in_training(width, tmp_path):
    inputs = keras.Input((64,))
    model = keras.Model(inputs, ops.flip(layers.Activation("tanh")(inputs), 1))
    x = np.random.default_rng(0).uniform(-3, 3, (64, 64)).astype("float32")
    qat = tfc.quantize_aware(model, calibration_data=x)
    for quantizer in tfc.graph.find_layers(qat, FakeQuant):
        if quantizer.fixed_range is None:
            quantizer.ends_on_grid = False
            quantizer.set_range(0, -width, width)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    runner = TFLiteRunner(result.path)
    scale, zero_point = runner.inputs[0]["quantization"]
    low, high = tf.quantization.fake_quant_with_min_max_vars(
        [-9.0, 9.0], -width, width
    ).numpy()
    assert scale * (-128 - zero_point) == pytest.approx(low, rel=1e-6)
    assert scale * (127 - zero_point) == pytest.approx(high, rel=1e-6)


# Operation of one positive input -> share of equal int8 values.
POSITIVE = {
    "square root": (ops.sqrt, 0.4),
    "inverse square root": (lambda x: ops.rsqrt(x + 0.5), 0.5),
    "logarithm": (lambda x: ops.log(x + 0.5), 0.5),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_an_operation_of_a_positive_number_agrees(name, tmp_path):
    layer, share = POSITIVE[name]
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, layer(inputs))
    x = np.random.default_rng(0).uniform(0, 4, (64, *SHAPE)).astype("float32")
    found, expected = _integers(model, x, tmp_path)
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found == expected) >= share


@pytest.mark.slow
def test_a_table_of_embeddings_agrees(tmp_path):
    inputs = keras.Input((12,), dtype="int32")
    model = keras.Model(inputs, layers.Embedding(50, 8)(inputs))
    x = np.random.default_rng(0).integers(0, 50, (64, 12)).astype("int32")
    found, expected = _integers(model, x, tmp_path)
    np.testing.assert_array_equal(found, expected)


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
