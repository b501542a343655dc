"""Channels first, computed with channels last."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.graph import Graph
from tfcompress.passes.lowering.channels_last import channels_last

FIRST = {"data_format": "channels_first"}


def _conv(x):
    x = layers.Conv2D(6, 3, strides=2, padding="same", **FIRST)(x)
    x = layers.ReLU()(layers.BatchNormalization(axis=1)(x))
    return layers.DepthwiseConv2D(3, padding="same", **FIRST)(x)


def _residual(x):
    y = layers.Conv2D(4, 3, padding="same", **FIRST)(x)
    y = layers.Activation("swish")(layers.BatchNormalization(axis=1)(y))
    y = layers.Dropout(0.3)(y)
    return layers.Add()([x, y]) * 0.5 - 0.1


def _excite(x):
    y = layers.Conv2D(4, 3, **FIRST)(x)
    s = layers.GlobalAveragePooling2D(keepdims=True, **FIRST)(y)
    s = layers.Conv2D(4, 1, activation="sigmoid", **FIRST)(s)
    return layers.Multiply()([y, s])


def _dense_block(x):
    y = layers.Conv2D(3, 3, padding="same", **FIRST)(x)
    return layers.Conv2D(2, 1, **FIRST)(layers.Concatenate(axis=1)([x, y]))


def _every_layer(x):
    x = layers.ZeroPadding2D(1, **FIRST)(x)
    x = layers.SeparableConv2D(5, 3, **FIRST)(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, **FIRST)(x)
    x = layers.GroupNormalization(2, axis=1)(x)
    x = layers.UpSampling2D(2, **FIRST)(layers.MaxPooling2D(2, **FIRST)(x))
    x = layers.AveragePooling2D(2, **FIRST)(layers.Cropping2D(1, **FIRST)(x))
    x = layers.LayerNormalization(axis=1)(x)
    return layers.Dense(3)(layers.Flatten(**FIRST)(x))


def _flat_in_its_own_order(x):
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3, **FIRST)(x)))


def _over_other_axes(x):
    y = layers.Conv2D(4, 3, padding="same", **FIRST)(x)
    y = layers.Concatenate(axis=2)([y, x]) + ops.ones((4, 1, 1))
    return layers.Softmax(axis=1)(y)


def _constants(x):
    y = layers.Conv2D(4, 3, padding="same", **FIRST)(x)
    return y * np.arange(1, 5, dtype="float32").reshape(1, 4, 1, 1) + ops.ones(
        (4, 1, 1)
    )


def _prelu(x):
    y = layers.PReLU(shared_axes=[2, 3])(layers.Conv2D(4, 3, **FIRST)(x))
    return layers.PReLU()(layers.Conv2D(3, 3, **FIRST)(y))


def _shared(x):
    join = layers.Concatenate(axis=1)
    y = layers.Conv2D(4, 3, padding="same", **FIRST)(join([x, x]))
    return layers.Conv2D(2, 1, **FIRST)(join([y, x]))


def _noise_of_a_shape(x):
    y = layers.Conv2D(4, 3, **FIRST)(x)
    return layers.Dropout(0.5, noise_shape=(None, 4, 1, 1))(y)


def _film(x):
    """Axis 1 is that of time."""
    return layers.ConvLSTM2D(3, 3, return_sequences=True, **FIRST)(x)


@keras.saving.register_keras_serializable(package="tests")
class Patches(layers.Layer):
    """Cuts images with channels first into a sequence."""

    def __init__(self, width, data_format, **kwargs):
        super().__init__(**kwargs)
        self.width, self.data_format = width, data_format
        self.conv = layers.Conv2D(width, 2, strides=2, data_format=data_format)

    def call(self, x):
        y = ops.reshape(self.conv(x), (-1, self.width, 20))
        return ops.transpose(y, (0, 2, 1))

    def get_config(self):
        own = {"width": self.width, "data_format": self.data_format}
        return {**super().get_config(), **own}


def _back_again(x):
    y = layers.Permute((2, 3, 1))(layers.Conv2D(4, 3, **FIRST)(x))
    return layers.Conv2D(3, 1, data_format="channels_last")(y)


def _sequence(x):
    x = layers.Conv1D(6, 3, padding="same", **FIRST)(x)
    x = layers.ReLU()(layers.BatchNormalization(axis=1)(x))
    return layers.GlobalMaxPooling1D(**FIRST)(layers.AveragePooling1D(2, **FIRST)(x))


def _volume(x):
    x = layers.Conv3D(4, 2, activation="relu", **FIRST)(x)
    return layers.GlobalAveragePooling3D(**FIRST)(x)


IMAGE = (4, 10, 8)
# Name -> function, shape of an input, transposes in the new model.
MODELS = {
    "convolutions": (_conv, IMAGE, 2),
    "residual": (_residual, IMAGE, 2),
    "squeeze and excite": (_excite, IMAGE, 2),
    "concatenation": (_dense_block, IMAGE, 2),
    "every layer": (_every_layer, IMAGE, 1),
    "flattened in its own order": (_flat_in_its_own_order, IMAGE, 2),
    "other axes": (_over_other_axes, IMAGE, 2),
    "back again": (_back_again, IMAGE, 3),
    "constants": (_constants, IMAGE, 2),
    "prelu": (_prelu, IMAGE, 2),
    "shared concatenation": (_shared, IMAGE, 4),
    "noise of a shape": (_noise_of_a_shape, IMAGE, 2),
    "sequence": (_sequence, (5, 12), 1),
    "volume": (_volume, (2, 5, 6, 7), 1),
}


def _made(name):
    build, shape, _ = MODELS[name]
    inputs = keras.Input(shape, name="x")
    model = keras.Model(inputs, build(inputs))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1, weight.shape))
    return model, rng.normal(size=(4, *shape)).astype("float32")


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same_with_few_transposes(name):
    model, x = _made(name)
    last = channels_last(model)
    expected = model(x).numpy()
    np.testing.assert_allclose(last(x), expected, atol=1e-5 * np.abs(expected).max())
    operations = [call.operation for call in Graph(last).calls]
    permutes = [op for op in operations if isinstance(op, layers.Permute)]
    assert len(permutes) == MODELS[name][2]
    assert not any(
        getattr(op, "data_format", None) == "channels_first" for op in operations
    )
    sizes = [sorted(w.shape.num_elements() for w in m.weights) for m in (last, model)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    "build",
    [
        lambda x: layers.Concatenate(axis=1)([x, layers.Conv2D(8, 1)(x)]),
        lambda x: layers.LayerNormalization(axis=1)(x),
        lambda x: layers.BatchNormalization()(x),
        lambda x: layers.Dense(2)(layers.Flatten()(x)),
    ],
)
def test_a_model_with_channels_last_is_left_alone(build):
    inputs = keras.Input((5, 6, 8))
    model = keras.Model(inputs, build(inputs))
    assert channels_last(model) is model


def test_a_convolution_over_time_is_left_alone():
    inputs = keras.Input((4, 4, 8, 8))
    model = keras.Model(inputs, _film(inputs))
    assert channels_last(model) is model


def test_a_layer_of_ones_own_is_taken_apart_first():
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, layers.Dense(3)(Patches(6, "channels_first")(inputs)))
    assert channels_last(model) is model
    x = np.random.default_rng(0).normal(size=(4, *IMAGE)).astype("float32")
    qat = tfc.quantize_aware(model, calibration_data=x)
    assert np.abs(qat(x) - model(x)).max() < 0.1


def test_flat_inputs_have_no_channels():
    inputs = keras.Input((6,))
    flat = layers.Flatten(**FIRST)(inputs)
    model = keras.Model(inputs, flat)
    assert channels_last(model) is model


def test_transposes_have_the_dtype_of_what_they_transpose():
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, layers.Conv2D(4, 3, dtype="float32", **FIRST)(inputs))
    keras.config.set_dtype_policy("mixed_float16")
    try:
        last = channels_last(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert last.output.dtype == "float32"


@pytest.mark.parametrize(
    "build, shape",
    [
        (lambda x: layers.SeparableConv2D(3, 3)(x), IMAGE),
        (lambda x: layers.MaxPooling3D(2)(layers.Conv3D(3, 2)(x)), (2, 5, 6, 7)),
    ],
)
def test_channels_may_come_first_in_all_of_keras(build, shape):
    keras.config.set_image_data_format("channels_first")
    try:
        inputs = keras.Input(shape)
        model = keras.Model(inputs, build(inputs))
        x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
        qat = tfc.quantize_aware(model, calibration_data=x)
        assert qat.output.shape == model.output.shape
        assert np.abs(qat(x) - model(x)).max() < 0.1
    finally:
        keras.config.set_image_data_format("channels_last")


def test_a_shared_layer_stays_shared():
    inputs = keras.Input((4, 8, 8))
    conv = layers.Conv2D(4, 3, padding="same", name="shared", **FIRST)
    model = keras.Model(inputs, conv(layers.ReLU()(conv(inputs))))
    last = channels_last(model)
    assert len(last.weights) == 2
    x = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype("float32")
    np.testing.assert_allclose(last(x), model(x), atol=1e-5)


def test_frozen_layers_stay_frozen():
    model, _ = _made("convolutions")
    model.layers[1].trainable = False
    last = channels_last(model)
    assert len(last.trainable_weights) == len(model.trainable_weights)


@pytest.mark.parametrize("name", ["residual", "concatenation", "sequence", "prelu"])
def test_it_trains_and_becomes_integers(name, tmp_path):
    model, x = _made(name)
    qat = tfc.quantize_aware(model, calibration_data=x)
    assert [tuple(t.shape) for t in qat.inputs] == [(None, *x.shape[1:])]
    qat.compile("sgd", "mse")
    qat.fit(x, np.zeros_like(model(x)), verbose=0)
    result = tfc.export_tflite(qat, tmp_path / "model.tflite", kind="int8")
    assert result.fully_integer
    assert result.operators.get("TRANSPOSE", 0) <= MODELS[name][2]
