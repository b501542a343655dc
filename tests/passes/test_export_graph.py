"""The export graph: what converters need to find in it, and the grids of weights."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import conv_net, image_data

import tfcompress as tfc
from tfcompress.layers import TransformWeights
from tfcompress.passes.export_graph import (
    export_graph,
    export_graph_and_weights,
    told_apart,
)
from tfcompress.passes.exported_weights import spread


def quantized(config="int8", *, rules=()):
    """A quantization-aware network whose normalizations have something to fold."""
    model = conv_net()
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(-1.5, 1.5, layer.gamma.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.gamma.shape))
    data = image_data(16)[0]
    return tfc.quantize_aware(model, config, calibration_data=data, rules=rules)


def config(**settings):
    return tfc.QuantizationConfig(**settings)


CONFIGS = {
    "8 bits": (config(), 127),
    "4 bits": (config(weight_bits=4), 7),
    "3 bits": (config(weight_bits=3), 3),
    "one scale": (config(per_channel=False), 127),
    "learned step": (config(weights="learned_step", weight_bits=4), 7),
    "learned, one step": (config(weights="learned_step", per_channel=False), 127),
    "ternary": (config(weights="ternary"), 1),
    "binary": (config(weights="binary"), 1),
    "power of two": (config(power_of_two=True, weight_bits=4), 7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_is_a_whole_number_of_the_reported_steps(name):
    settings, highest = CONFIGS[name]
    plain, weights = export_graph_and_weights(quantized(settings))
    assert [w.name for w in weights] == ["conv", "depthwise", "hidden", "classifier"]
    for weight in weights:
        np.testing.assert_array_equal(
            weight.values, plain.get_layer(weight.name).kernel.numpy()
        )
        integers = weight.values / weight.step
        # float32 rounding of the product with the folded factor.
        np.testing.assert_allclose(integers, np.round(integers), atol=1e-4)
        assert np.abs(integers).max() <= highest + 1e-4
        assert weight.bits == (8 if highest == 127 else len(bin(highest)) - 1)


@pytest.mark.slow
def test_one_scale_is_one_step_with_normalization_folded_in():
    _, weights = export_graph_and_weights(quantized("int8_per_tensor"))
    assert [w.step.size for w in weights] == [1] * 4
    assert not any(w.per_channel for w in weights)
    # A step that was learned for the kernel differs after folding.
    learned = config(weights="learned_step", per_channel=False)
    _, weights = export_graph_and_weights(quantized(learned))
    assert [w.per_channel for w in weights] == [True, True, False, False]


def test_steps_that_are_powers_of_two_stay_so():
    _, weights = export_graph_and_weights(quantized(config(power_of_two=True)))
    assert [w.per_channel for w in weights] == [True] * 4
    for weight in weights:
        assert (np.frexp(weight.step)[0] == 0.5).all()
    one_scale = config(power_of_two=True, per_channel=False)
    _, weights = export_graph_and_weights(quantized(one_scale))
    assert [np.size(w.step) for w in weights] == [1] * 4
    for weight in weights:
        assert (np.frexp(weight.step)[0] == 0.5).all()


@pytest.mark.parametrize("weights", ["max", "learned_step"])
def test_the_bits_in_force_count(weights):
    qat = quantized(config(weights=weights))
    for layer in qat.layers:
        if isinstance(layer, TransformWeights):
            layer.states["kernel"][-1]["bits"].assign(4)
    _, found = export_graph_and_weights(qat)
    for weight in found:
        integers = weight.values / weight.step
        assert weight.bits == 4 and np.abs(integers).max() <= 7 + 1e-4
        np.testing.assert_allclose(integers, np.round(integers), atol=1e-4)


def test_float_and_asymmetric_weights_have_no_step():
    qat = quantized()
    qat.get_layer("hidden").states["kernel"][-1]["bits"].assign(0)
    weight = export_graph_and_weights(qat)[1][2]
    assert (weight.name, weight.bits, weight.step) == ("hidden", 0, None)
    weights = export_graph_and_weights(quantized(config(symmetric_weights=False)))[1]
    assert [(w.bits, w.step) for w in weights] == [(8, None)] * 4


def test_spread_is_the_largest_power_of_two_that_fits():
    assert [spread(bits) for bits in (2, 3, 4, 5, 8)] == [64, 32, 16, 8, 1]
    assert [spread(bits, 4) for bits in (2, 3, 4)] == [4, 2, 1]


def test_a_bias_of_one_number_is_told_apart():
    bias = np.full(3, 0.1, "float32")
    changed = told_apart(bias)
    assert changed[0] != changed[1] == changed[2]
    np.testing.assert_allclose(changed, bias, rtol=1e-7)
    for other in (np.zeros(3), np.array([0.1]), np.array([0.1, 0.2])):
        np.testing.assert_array_equal(told_apart(other), other.astype("float32"))


def test_every_bias_of_the_graph_is_told_apart():
    inputs = keras.Input((6, 6, 4))
    filled = {"bias_initializer": keras.initializers.Constant(0.1)}
    x = layers.Conv2D(5, 3, **filled)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(layers.DepthwiseConv2D(3, **filled)(x))
    x = layers.BatchNormalization(beta_initializer=keras.initializers.Constant(0.1))(x)
    outputs = layers.Dense(3, **filled)(layers.Flatten()(x))
    data = np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype("float32")
    qat = tfc.quantize_aware(keras.Model(inputs, outputs), calibration_data=data)
    plain = export_graph(qat)
    vectors = [w.numpy() for w in plain.weights if w.path.endswith(("bias", "shift"))]
    assert len(vectors) == 4
    for vector in vectors:
        assert len(np.unique(vector)) > 1
    difference = np.abs(plain.predict(data, verbose=0) - qat.predict(data, verbose=0))
    # Values on the border of two steps.
    assert np.mean(difference > 1e-6) < 0.02
