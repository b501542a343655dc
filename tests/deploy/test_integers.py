"""Integer files of quantization-aware models: each weight on the grid it learned."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.layers import TransformWeights
from tfcompress.passes.export_graph import export_graph_and_weights

SHAPE = (8, 8, 3)


def config(**settings):
    return tfc.QuantizationConfig(**settings)


def filled(value):
    return keras.initializers.Constant(value)


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(1).uniform(-1, 1, (64, *SHAPE)).astype("float32")


def small_net():
    """Convolution with batch normalization, depthwise, dense; nothing saturates."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(9, 3, padding="same", name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    outputs = layers.Dense(5, name="dense")(layers.Flatten()(x))
    model = keras.Model(inputs, outputs, name="net")
    model.get_layer("norm").gamma.assign(rng.uniform(0.5, 1.5, 9))
    return model


def quantized(settings, data, rules=()):
    return tfc.quantize_aware(small_net(), settings, calibration_data=data, rules=rules)


def kernels(path):
    return [op.inputs[1] for op in read_tflite(path).operations if len(op.inputs) == 3]


def real(tensor):
    shape = [1] * len(tensor.shape)
    if tensor.scale.size > 1:
        shape[tensor.quantized_axis] = -1
    return tensor.value() * tensor.scale.astype(float).reshape(shape)


def differences(qat, path, data):
    """Outputs of file and model, in steps of the output."""
    runner = TFLiteRunner(path)
    scale, zero = runner.outputs[0]["quantization"]
    expected = np.round(qat.predict(data, verbose=0) / scale) + zero
    return np.abs(runner.integers([data])[0] - expected)


GRIDS = {
    "4 bits": config(weight_bits=4),
    "one scale": config(per_channel=False),
    "4 bits, one scale": config(weight_bits=4, per_channel=False),
    "learned step of 8 bits": config(weights="learned_step"),
    "learned step of 4 bits": config(weights="learned_step", weight_bits=4),
    "learned, one step": config(weights="learned_step", per_channel=False),
    "ternary": config(weights="ternary"),
    "binary": config(weights="binary"),
    "power of two": config(power_of_two=True),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_file_holds_the_weights_the_model_computes_with(name, data, tmp_path):
    qat = quantized(GRIDS[name], data)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8", pack=False)
    weights = export_graph_and_weights(qat)[1]
    for tensor, weight in zip(kernels(result.path), weights, strict=True):
        expected = weight.values
        if weight.name != "depthwise":
            expected = np.moveaxis(expected, -1, 0)
        # Float32 rounding of folded values, against their scale.
        np.testing.assert_allclose(
            real(tensor), expected.reshape(tensor.shape), rtol=2e-5, atol=1e-7
        )
    found = differences(qat, result.path, data)
    # Three roundings in a row; shifts meet halves, which LiteRT rounds away from zero.
    same = 0.85 if GRIDS[name].power_of_two else 0.9
    assert np.mean(found == 0) > same and found.max() <= 1
    assert result.weights.tensors == {weights[0].bits: 3}


def test_learned_steps_are_the_scales_of_the_file(data, tmp_path):
    qat = quantized(config(weights="learned_step"), data)
    (state,) = qat.get_layer("dense").states["kernel"]
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    np.testing.assert_allclose(
        kernels(result.path)[-1].scale, state["step"].numpy(), rtol=1e-6
    )


@pytest.mark.slow
def test_powers_of_two_are_powers_of_two_in_the_file(data, tmp_path):
    qat = quantized(config(power_of_two=True, weight_bits=4), data)
    for pack in (True, False):
        result = tfc.export_tflite(qat, tmp_path / "m", kind="int8", pack=pack)
        for tensor in kernels(result.path):
            assert (np.frexp(tensor.scale)[0] == 0.5).all()


@pytest.mark.parametrize("kind", ["int8", "int16x8"])
def test_one_scale_a_weight(kind, data, tmp_path):
    settings = config(per_channel=False)
    if kind == "int16x8":
        settings = config(
            per_channel=False, activation_bits=16, symmetric_activations=True
        )
    qat = quantized(settings, data)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind=kind)
    assert [(t.scale.size, t.zero_point.size) for t in kernels(result.path)] == (
        [(1, 1)] * 3
    )
    found = differences(qat, result.path, data)
    assert found.max() <= (1 if kind == "int8" else 4)


@pytest.mark.slow
def test_one_scale_for_the_factors_of_a_normalization_too(data, tmp_path):
    inputs = keras.Input(SHAPE)
    factors = keras.initializers.RandomUniform(0.5, 1.5)
    x = layers.BatchNormalization(gamma_initializer=factors)(inputs)
    outputs = layers.Dense(4)(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    qat = tfc.quantize_aware(model, "int8_per_tensor", calibration_data=data)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    assert [t.scale.size for t in kernels(result.path)] == [1, 1]
    # Factors are rounded to 1/127 of the largest, which training did not know.
    assert differences(qat, result.path, data).max() <= 3


@pytest.mark.slow
def test_rules_mix_scales_per_channel_and_per_weight(data, tmp_path):
    rules = [
        tfc.Rule("conv", per_channel=False),
        tfc.Rule("dense", weight_bits=4, per_channel=False),
    ]
    qat = quantized("int8", data, rules)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    assert result.weights.tensors == {8: 2, 4: 1}
    conv, depthwise, dense = kernels(result.path)
    for tensor in (conv, dense):
        np.testing.assert_allclose(tensor.scale, tensor.scale[0], rtol=1e-6)
    assert len(np.unique(depthwise.scale)) == 9
    found = differences(qat, result.path, data)
    assert np.mean(found == 0) > 0.9 and found.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pack", "packed"), [("dense", {4: 1}), (True, {4: 3}), (False, {4: 0})]
)
def test_what_is_packed_is_chosen_and_told(pack, packed, data, tmp_path):
    qat = quantized("int4_weights", data)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8", pack=pack)
    types = [t.dtype for t in kernels(result.path)]
    assert types.count("INT4") == packed[4] == result.weights.packed[4]
    assert result.weights.tensors == {4: 3}
    assert f"weights:   3 of 4 bits ({packed[4]} packed)" in str(result)
    assert differences(qat, result.path, data).max() <= 1


@pytest.mark.slow
def test_the_bits_in_force_are_stored(data, tmp_path):
    qat = quantized("int8", data)
    for layer in qat.layers:
        if isinstance(layer, TransformWeights):
            layer.states["kernel"][-1]["bits"].assign(5)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    assert result.weights.tensors == {5: 3}
    assert differences(qat, result.path, data).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_16_bit_activations(bits, data, tmp_path):
    settings = config(activation_bits=16, symmetric_activations=True, weight_bits=bits)
    qat = quantized(settings, data)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int16x8")
    assert result.fully_integer
    assert set(result.tensor_types) <= {"INT16", "INT8", "INT4", "INT64", "INT32"}
    assert TFLiteRunner(result.path).inputs[0]["dtype"] == np.int16
    # Three roundings in a row, of 65,536 steps each.
    assert differences(qat, result.path, data).max() <= 4
    result = tfc.export_tflite(qat, tmp_path / "f", kind="int16x8", io="float32")
    assert TFLiteRunner(result.path).inputs[0]["dtype"] == np.float32


def test_a_plain_model_with_16_bit_activations(data, tmp_path):
    model = small_net()
    result = tfc.export_tflite(
        model, tmp_path / "m.tflite", kind="int16x8", calibration_data=data
    )
    found = TFLiteRunner(result.path).predict([data])[0]
    # Weights of 8 bits remain.
    np.testing.assert_allclose(found, model.predict(data, verbose=0), atol=0.05)


BIASED = {
    "conv": lambda: layers.Conv2D(5, 3, bias_initializer=filled(0.1)),
    "depthwise": lambda: layers.DepthwiseConv2D(3, bias_initializer=filled(0.1)),
    "transposed": lambda: layers.Conv2DTranspose(5, 3, bias_initializer=filled(0.1)),
    "dense": lambda: layers.Dense(5, bias_initializer=filled(0.1)),
    "affine": lambda: layers.BatchNormalization(
        beta_initializer=filled(0.1),
        gamma_initializer=keras.initializers.RandomUniform(0.3, 1.5),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("kind", ["int8", "int16x8"])
def test_a_bias_of_one_number_is_that_number_in_the_file(kind, name, data, tmp_path):
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, BIASED[name]()(inputs))
    qat = tfc.quantize_aware(model, kind, calibration_data=data)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind=kind)
    (operation,) = read_tflite(result.path).operations
    bias = operation.inputs[3 if operation.operator == "TRANSPOSE_CONV" else 2]
    np.testing.assert_allclose(bias.value() * bias.scale, 0.1, atol=2e-4)
    found = differences(qat, result.path, data)
    assert found.max() <= 1 and np.mean(found == 0) > (0.99 if kind == "int8" else 0.5)


# What cannot be stored.


def test_the_kind_must_be_what_was_trained(data, tmp_path):
    with pytest.raises(ValueError, match=r"8 bits; kind='int16x8' has 16. Pass kind"):
        tfc.export_tflite(quantized("int8", data), tmp_path / "m", kind="int16x8")
    with pytest.raises(ValueError, match=r"16 bits; kind='int8' has 8. Pass kind"):
        tfc.export_tflite(quantized("int16x8", data), tmp_path / "m", kind="int8")


def test_weights_that_are_float_still(data, tmp_path):
    qat = quantized("int8", data)
    qat.get_layer("dense").states["kernel"][-1]["bits"].assign(0)
    with pytest.raises(ValueError, match="not rounded now.*'dense'.*Train on until"):
        tfc.export_tflite(qat, tmp_path / "m", kind="int8")


def test_weights_of_more_than_8_bits(data, tmp_path):
    qat = quantized("int8", data)
    qat.get_layer("dense").states["kernel"][-1]["bits"].assign(12)
    with pytest.raises(ValueError, match=r"Received: 'dense' \(12 bits\)"):
        tfc.export_tflite(qat, tmp_path / "m", kind="int8")


def test_asymmetric_weights(data, tmp_path):
    qat = quantized(config(symmetric_weights=False), data)
    with pytest.raises(ValueError, match="symmetric grids only; those of 'conv'"):
        tfc.export_tflite(qat, tmp_path / "m", kind="int8")
