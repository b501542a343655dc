"""`tfc.measure`: figures against sums done by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import compiled, conv_net, image_data

import tfcompress as tfc


def test_parameters_zeros_and_bytes_by_hand():
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs, layers.Dense(3, bias_initializer="ones", name="dense")(inputs)
    )
    model.layers[-1].kernel.assign(np.eye(4, 3))
    found = tfc.measure(model)
    assert (found.parameters, found.nonzero_parameters) == (15, 6)
    assert found.sparsity == pytest.approx(9 / 15)
    assert found.bytes == 60
    assert found.kernels == (("dense/kernel", 12, 0.75),)
    assert found.latency_ms is None and found.accuracy is None


def test_values_bits_and_entropy_of_a_kernel_by_hand():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(4, name="dense")(inputs))
    kernel = np.zeros((4, 4))
    kernel[:, 1] = 2
    kernel[0, 2], kernel[1, 2] = 1, 2
    model.layers[-1].kernel.assign(kernel)
    measured = tfc.measure(model)
    (found,) = measured.layers
    assert (found.name, found.parameters) == ("dense/kernel", 16)
    assert (found.distinct_values, found.channel_values) == (3, 3)
    assert found.sparsity == pytest.approx(10 / 16) and found.bits == 32
    share = np.array([10, 5, 1]) / 16
    assert found.entropy_bits == pytest.approx(-np.sum(share * np.log2(share)))
    assert found.entropy_bytes == measured.entropy_bytes == 3
    assert found.gzip_bytes < 64
    assert "dense/kernel" in measured.layer_table()
    assert "3 bytes at least" in str(measured)


@pytest.mark.slow
def test_values_of_a_file_are_those_that_it_stores(tmp_path):
    x, _ = image_data(32)
    shared = tfc.cluster(conv_net(), 5)
    path = tmp_path / "m.tflite"
    tfc.export_tflite(tfc.quantize_aware(shared, calibration_data=x), path, kind="int8")
    found = {layer.parameters: layer for layer in tfc.measure(path).layers}
    assert sorted(found) == [24, 72, 216, 1024]
    assert all(f.channel_values <= 5 and f.bits == 8 for f in found.values())
    # Per tensor the model itself has no more.
    model = {layer.parameters: layer for layer in tfc.measure(shared).layers}
    assert all(layer.distinct_values <= 5 for layer in model.values())
    assert model[1024].entropy_bits < np.log2(5)


def test_the_channels_of_every_kind_of_kernel():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2DTranspose(3, 1, name="up")(layers.DepthwiseConv2D(1)(inputs))
    model = keras.Model(inputs, x)
    model.layers[1].kernel.assign(np.array([1, 2]).reshape(1, 1, 2, 1))
    model.layers[2].kernel.assign(np.arange(6).reshape(1, 1, 3, 2))
    found = tfc.measure(model).layers
    assert [layer.distinct_values for layer in found] == [2, 6]
    assert [layer.channel_values for layer in found] == [1, 2]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_the_channels_of_a_depthwise_kernel_in_a_float_file(kind, tmp_path):
    inputs = keras.Input((8, 8, 16))
    model = keras.Model(inputs, layers.DepthwiseConv2D(3, use_bias=False)(inputs))
    signs = np.where(np.random.default_rng(0).random((3, 3, 16, 1)) < 0.5, -1, 1)
    model.layers[1].kernel.assign(signs * np.arange(1, 17).reshape(1, 1, 16, 1))
    path = tfc.export_tflite(model, tmp_path / "m.tflite", kind=kind).path
    (layer,) = tfc.measure(path).layers
    assert (layer.distinct_values, layer.channel_values) == (32, 2)


def test_a_kernel_of_one_value_needs_nothing():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(4, kernel_initializer="ones")(inputs))
    (found,) = tfc.measure(model).layers
    assert (found.entropy_bits, found.entropy_bytes) == (0, 0)
    assert (found.distinct_values, found.channel_values) == (1, 1)


MACS = {
    "dense": (lambda: layers.Dense(5), (7,), 35),
    "conv": (lambda: layers.Conv2D(5, 3), (6, 8, 2), 4 * 6 * 5 * 9 * 2),
    "strides": (
        lambda: layers.Conv2D(5, 3, strides=2, padding="same"),
        (6, 8, 2),
        3 * 4 * 5 * 9 * 2,
    ),
    "depthwise": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        (6, 8, 4),
        4 * 6 * 8 * 9,
    ),
    "grouped": (lambda: layers.Conv2D(4, 3, groups=2), (6, 8, 4), 4 * 6 * 4 * 9 * 2),
    "separable": (
        lambda: layers.SeparableConv2D(5, 3),
        (6, 8, 4),
        4 * 6 * (4 * 9 + 4 * 5),
    ),
    "transposed": (lambda: layers.Conv2DTranspose(5, 3), (6, 8, 2), 6 * 8 * 9 * 2 * 5),
    "one dimension": (lambda: layers.Conv1D(5, 3), (8, 2), 6 * 5 * 3 * 2),
    "three dimensions": (lambda: layers.Conv3D(5, 3), (4, 4, 4, 2), 8 * 5 * 27 * 2),
    "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (6, 5)), (6, 4), 6 * 4 * 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MACS)
def test_macs_by_hand_in_keras_and_in_the_file(name, tmp_path):
    layer, shape, expected = MACS[name]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer()(inputs))
    assert tfc.measure(model).macs == expected
    tfc.export_tflite(model, tmp_path / "m.tflite")
    assert tfc.measure(tmp_path / "m.tflite").macs == expected


def test_macs_of_a_recurrent_model_are_unknown():
    inputs = keras.Input((5, 4))
    assert tfc.measure(keras.Model(inputs, layers.LSTM(3)(inputs))).macs is None


def test_a_quantized_model_counts_as_it_is_deployed():
    x, _ = image_data(16)
    model = conv_net()
    qat = tfc.quantize_aware(model, calibration_data=x)
    assert tfc.measure(qat).parameters == tfc.measure(model).parameters
    assert tfc.measure(qat).macs == tfc.measure(model).macs


@pytest.mark.slow
def test_keras_and_files_agree_on_accuracy_in_every_form_of_data(tmp_path):
    x, y = image_data()
    model = compiled(conv_net())
    model.fit(x, y, epochs=1, verbose=0)
    expected = model.evaluate(x, y, verbose=0)[1]
    path = tmp_path / "m.tflite"
    tfc.export_tflite(model, path)
    one_hot = np.eye(3)[y]
    data_set = tf.data.Dataset.from_tensor_slices((x, y)).batch(50)
    for data in ((x, y), (x, one_hot), (x, y[:, None]), data_set):
        assert tfc.measure(model, data).accuracy == pytest.approx(expected)
    found = tfc.measure(path, (x, y))
    assert found.accuracy == pytest.approx(expected)
    assert found.latency_ms > 0
    # Batch normalization is folded: kernels and biases are left.
    assert found.parameters == (216 + 8) + (72 + 8) + (1024 + 8) + (24 + 3)


def test_a_binary_model_is_right_above_one_half():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, layers.Dense(1, "sigmoid", use_bias=False)(inputs))
    model.layers[-1].kernel.assign([[1.0]])
    x = np.array([[-1.0], [2.0], [3.0], [-4.0]])
    assert tfc.measure(model, (x, np.array([0, 1, 0, 0]))).accuracy == 0.75


def test_it_prints_as_a_table():
    text = str(tfc.measure(conv_net(), name="mine"))
    assert text.startswith("mine") and "MACs" in text and "latency, ms -" in text


def test_data_without_labels_and_with_odd_labels():
    x, y = image_data(8)
    with pytest.raises(ValueError, match="must hold labels"):
        tfc.measure(conv_net(), x)
    with pytest.raises(ValueError, match="do not fit outputs"):
        tfc.measure(conv_net(), (x, np.zeros((8, 7))))


def test_neither_model_nor_file(tmp_path):
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        tfc.measure(3)
    with pytest.raises(FileNotFoundError, match="No such .tflite file"):
        tfc.measure(tmp_path / "none.tflite")


def test_measuring_many_models_logs_nothing(tensorflow_log):
    data = (np.zeros((3, 4), "float32"), np.zeros(3, int))
    for _ in range(7):
        inputs = keras.Input((4,))
        tfc.measure(keras.Model(inputs, layers.Dense(2)(inputs)), data=data)
    assert tensorflow_log == []
