"""`tfc.separate_convs`: depthwise-separable convolutions from trained kernels."""

import re

import keras
import numpy as np
import pytest
from keras import layers
from networks import compiled, image_data

import tfcompress as tfc


def _model(conv, shape=(9, 8, 6)):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, conv(inputs))
    if conv.use_bias:
        conv.bias.assign(np.random.default_rng(1).normal(size=conv.bias.shape))
    return model


def _outputs(model, seed=0):
    shape = (4, *model.inputs[0].shape[1:])
    x = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return np.asarray(model(x, training=False))


def _combined(depthwise, pointwise):
    """The kernel of both layers in one, by loops."""
    depthwise, pointwise = depthwise.kernel.numpy(), pointwise.kernel.numpy()[0, 0]
    height, width, inputs, multiplier = depthwise.shape
    kernel = np.zeros((height, width, inputs, pointwise.shape[1]))
    for i in range(inputs):
        for m in range(multiplier):
            row = pointwise[i * multiplier + m]
            kernel[:, :, i] += depthwise[:, :, i, m, None] * row
    return kernel


GEOMETRIES = {
    "plain": {},
    "same, strides": {"padding": "same", "strides": 2},
    "dilated": {"padding": "same", "dilation_rate": 2},
    "no bias, activation": {"use_bias": False, "activation": "tanh"},
}


@pytest.mark.parametrize(
    "settings",
    [{}, {"depth_multiplier": 2}, {"rank": 5}],
    ids=["plain", "multiplier", "bottleneck"],
)
def test_a_convolution_in_one_dimension_is_that_of_one_row(settings):
    geometry = {"padding": "same", "strides": 2, "name": "conv"}
    line = _model(layers.Conv1D(10, 3, **geometry), (9, 6))
    row = _model(layers.Conv2D(10, (1, 3), **geometry), (1, 9, 6))
    row.get_layer("conv").set_weights(
        [line.get_layer("conv").kernel[None], line.get_layer("conv").bias]
    )
    found, expected = (
        tfc.separate_convs(m, return_report=True, **settings) for m in (line, row)
    )
    assert any(isinstance(x, layers.DepthwiseConv1D) for x in found[0].layers)
    x = np.random.default_rng(0).normal(size=(4, 9, 6)).astype("float32")
    # 1e-5: float32 sums of up to 30 products.
    np.testing.assert_allclose(found[0](x), expected[0](x[:, None])[:, 0], atol=1e-5)
    for one, other in zip(found[1].changes, expected[1].changes, strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-4)
        assert one.parameters_after == other.parameters_after < one.parameters_before


def test_a_causal_convolution_is_left_alone():
    model = _model(layers.Conv1D(10, 3, padding="causal", name="conv"), (9, 6))
    found, report = tfc.separate_convs(model, return_report=True)
    assert found.count_params() == model.count_params()
    assert "no causal padding" in report.changes[0].what


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_parts_compute_with_the_best_separable_kernel(name, multiplier):
    conv = layers.Conv2D(10, 3, name="conv", **GEOMETRIES[name])
    model = _model(conv)
    found, report = tfc.separate_convs(
        model, depth_multiplier=multiplier, return_report=True
    )
    depthwise, pointwise = found.layers[1:]
    assert isinstance(depthwise, layers.DepthwiseConv2D) and pointwise.name == "conv"
    kernel, best = conv.kernel.numpy(), 0.0
    for channel in range(6):
        values = np.linalg.svd(kernel[:, :, channel].reshape(9, 10), compute_uv=False)
        best += np.sum(values[multiplier:] ** 2)
    separable = _combined(depthwise, pointwise)
    np.testing.assert_allclose(np.sum((kernel - separable) ** 2), best, rtol=1e-4)
    np.testing.assert_allclose(
        report.changes[0].error, np.sqrt(best) / np.linalg.norm(kernel), rtol=1e-4
    )
    conv.kernel.assign(separable)
    np.testing.assert_allclose(_outputs(found), _outputs(model), rtol=1e-4, atol=1e-5)


def test_a_separable_kernel_is_replaced_exactly():
    rng = np.random.default_rng(0)
    model = _model(layers.Conv2D(10, (3, 5), padding="same", name="conv"))
    kernel = np.einsum(
        "hwi,io->hwio", rng.normal(size=(3, 5, 6)), rng.normal(size=(6, 10))
    )
    model.get_layer("conv").kernel.assign(kernel / 10)
    found, report = tfc.separate_convs(model, return_report=True)
    assert report.changes[0].error < 1e-6
    assert found.count_params() == 3 * 5 * 6 + 6 * 10 + 10
    # Sums over 90 products in another order.
    np.testing.assert_allclose(_outputs(found), _outputs(model), rtol=1e-4, atol=1e-5)


def test_the_bottleneck_is_1x1_depthwise_1x1():
    conv = layers.Conv2D(10, 3, padding="same", strides=2, name="conv")
    model = _model(conv)
    found, report = tfc.separate_convs(model, rank=8, return_report=True)
    first, depthwise, last = found.layers[1:]
    assert first.filters == 8 and depthwise.strides == (2, 2) and last.filters == 10
    assert first.strides == last.strides == (1, 1)
    kernel = np.einsum(
        "ir,hwr,ro->hwio",
        first.kernel.numpy()[0, 0],
        depthwise.kernel.numpy()[..., 0],
        last.kernel.numpy()[0, 0],
    )
    error = np.linalg.norm(conv.kernel.numpy() - kernel)
    error /= np.linalg.norm(conv.kernel.numpy())
    np.testing.assert_allclose(report.changes[0].error, error, rtol=1e-4)
    conv.kernel.assign(kernel)
    np.testing.assert_allclose(_outputs(found), _outputs(model), rtol=1e-4, atol=1e-5)


def _network():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    x = layers.Conv2D(16, 3, strides=2, activation="relu", name="middle")(x)
    x = layers.Conv2D(16, 1, name="point")(x)
    x = layers.Conv2D(16, 3, groups=4, name="grouped")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(3, activation="softmax", name="out")(x)
    return keras.Model(inputs, outputs)


def test_only_spatial_convolutions_of_one_group_change_and_rules_choose_how():
    model = _network()
    _, report = tfc.separate_convs(
        model, rank=4, rules=[tfc.Rule("stem", depth_multiplier=2)], return_report=True
    )
    assert [(c.layer, c.what) for c in report.changes] == [
        ("stem", "depthwise, 1x1"),
        ("middle", "1x1, depthwise, 1x1 of 4 channels"),
    ]
    assert report.changes[0].parameters_after == 9 * 3 * 2 + 3 * 2 * 8 + 8
    found = tfc.separate_convs(model, exclude="stem")
    assert [x.name for x in found.layers if "factor" in x.name] == ["middle_factor1"]


@pytest.mark.parametrize(
    "conv, settings, reason",
    [
        (layers.Conv2D(2, 3), {"depth_multiplier": 2}, "not smaller"),
        (layers.Conv2D(4, 3), {"rank": 50}, "not smaller"),
        (layers.Conv2D(9, 3, strides=(2, 1)), {}, "depthwise .* equal strides"),
    ],
)
def test_what_cannot_get_smaller_is_left_alone_and_said_so(conv, settings, reason):
    model = _model(conv)
    found, report = tfc.separate_convs(model, return_report=True, **settings)
    assert [type(layer) for layer in found.layers[1:]] == [layers.Conv2D]
    assert re.match(f"left alone: {reason}", report.changes[0].what)
    np.testing.assert_array_equal(_outputs(found), _outputs(model))


def test_a_shared_convolution_stays_shared():
    conv = layers.Conv2D(6, 3, padding="same", name="conv")
    inputs = keras.Input((6, 6, 6))
    model = keras.Model(inputs, conv(layers.ReLU()(conv(inputs))))
    found = tfc.separate_convs(model)
    assert found.count_params() == 9 * 6 + 6 * 6 + 6


def test_the_result_saves_loads_and_trains_and_the_original_is_as_it_was(tmp_path):
    x, y = image_data()
    model = _network()
    before = model.get_weights()
    found = tfc.separate_convs(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    found.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(_outputs(loaded), _outputs(found))
    history = compiled(loaded).fit(x, y, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"depth_multiplier": 0}, "whole `depth_multiplier` from 1 on"),
        ({"rank": 0.5}, "whole `rank` from 1 on. Received: rank=0.5"),
        ({"rank": 3, "depth_multiplier": 2}, "`depth_multiplier` or `rank`, not both"),
        ({"rules": [tfc.Rule("stem", width=2)]}, "'stem' may set .* Received: width"),
        ({"exclude": "nowhere"}, "'nowhere' matches nothing"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tfc.separate_convs(_network(), **settings)


def test_a_model_without_such_convolutions_is_refused():
    with pytest.raises(ValueError, match="Received: model .* of Conv2D"):
        tfc.separate_convs(_model(layers.Conv2D(4, 1)))
