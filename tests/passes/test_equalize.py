"""`tfc.equalize`: the same outputs from channels of like range."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import conv_net, image_data

import tfcompress as tfc


def _uneven(model, seed=0):
    """Kernels whose channels differ by up to a factor of a thousand."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                around = 0.0 if variable.name in ("beta", "moving_mean") else 1.0
                variable.assign(around + rng.uniform(-0.3, 0.3, variable.shape))
        elif hasattr(layer, "kernel"):
            kernel = layer.kernel.numpy()
            spread = 10 ** rng.uniform(-1.5, 1.5, kernel.shape[-1])
            layer.kernel.assign(kernel * spread)
            if layer.use_bias:
                layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return model


def _stack(shape, *stack):
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return _uneven(keras.Model(inputs, x))


def _assert_same(found, model):
    shape = (8, *model.inputs[0].shape[1:])
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    expected = model.predict(x, verbose=0)
    # float32 sums of a few hundred products, relative to the largest output.
    np.testing.assert_allclose(
        found.predict(x, verbose=0), expected, atol=2e-5 * np.abs(expected).max()
    )


# name -> (shape, layers, pairs that are equalized).
CHAINS = {
    "convolutions": (
        (6, 6, 3),
        lambda: [
            layers.Conv2D(5, 3, name="one"),
            layers.ReLU(),
            layers.Conv2D(4, 3, name="two"),
        ],
        ["one"],
    ),
    "fused activation, no bias": (
        (6, 6, 3),
        lambda: [
            layers.Conv2D(5, 3, activation="relu", use_bias=False, name="one"),
            layers.MaxPooling2D(),
            layers.Conv2D(4, 2, name="two"),
        ],
        ["one"],
    ),
    "depthwise between": (
        (6, 6, 3),
        lambda: [
            layers.Conv2D(4, 1, name="one"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="two"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(4, 1, name="three"),
        ],
        ["one", "two"],
    ),
    "groups": (
        (6, 6, 4),
        lambda: [
            layers.Conv2D(6, 3, name="one"),
            layers.LeakyReLU(0.1),
            layers.Conv2D(6, 3, groups=3, name="two"),
            layers.ReLU(),
            layers.Conv2D(2, 1, name="three"),
        ],
        ["one", "two"],
    ),
    "flattened": (
        (6, 6, 3),
        lambda: [
            layers.Conv2D(5, 3, name="one"),
            layers.ReLU(),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(7, activation="relu", name="two"),
            layers.Dense(2, activation="softmax", name="three"),
        ],
        ["one", "two"],
    ),
    "one axis": (
        (12, 3),
        lambda: [
            layers.Conv1D(5, 3, padding="causal", name="one"),
            layers.ReLU(),
            layers.DepthwiseConv1D(3, name="two"),
            layers.ReLU(),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, name="three"),
        ],
        ["one", "two"],
    ),
}


def _ranges(layer):
    """Largest weight of each input and output channel, from what impulses give."""
    if isinstance(layer, layers.Dense):
        size = np.abs(layer.kernel.numpy())
        return size.max(axis=1), size.max(axis=0)
    channels = layer.get_build_config()["input_shape"][-1]
    impulses = np.zeros((channels, *[9] * len(layer.kernel_size), channels), "float32")
    for channel in range(channels):
        impulses[(channel, *[4] * len(layer.kernel_size), channel)] = 1
    config = layer.get_config() | {"activation": "linear", "use_bias": False}
    linear = type(layer).from_config(config)
    linear.build(impulses.shape)
    linear.kernel.assign(layer.kernel)
    found = np.abs(linear(impulses)).reshape(channels, -1, linear(impulses).shape[-1])
    return found.max(axis=(1, 2)), found.max(axis=(0, 1))


@pytest.mark.parametrize("chain", CHAINS)
def test_the_function_is_unchanged_and_ranges_are_equal(chain):
    shape, stack, first = CHAINS[chain]
    model = _stack(shape, *stack())
    equalized, report = tfc.equalize(model, return_report=True)
    assert [change.layer for change in report.changes] == first
    _assert_same(equalized, model)
    for pair in zip(first, ["two", "three"], strict=False):
        one, two = (equalized.get_layer(name) for name in pair)
        outputs, inputs = _ranges(one)[1], _ranges(two)[0]
        # Flattening repeats the channels at each position.
        inputs = inputs.reshape(-1, len(outputs)).max(axis=0)
        # 3e-3: each round changes a factor by less than a thousandth in the end.
        np.testing.assert_allclose(outputs, inputs, rtol=3e-3)


def test_one_scale_a_kernel_loses_less():
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, activation="relu", name="one")(inputs)
    y = layers.DepthwiseConv2D(3, activation="relu", name="two")(y)
    model = keras.Model(inputs, layers.Conv2D(8, 1)(y))
    # Channels of very different range, and the same function.
    factor = 10 ** np.linspace(-1.5, 1.5, 8)
    one, two = model.get_layer("one").kernel, model.get_layer("two").kernel
    one.assign(one.numpy() * factor)
    two.assign(two.numpy() / factor[:, None])
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    expected = model.predict(x, verbose=0)

    def error(model):
        quantized = tfc.quantize_aware(model, "int8_per_tensor", calibration_data=x)
        return np.square(quantized.predict(x, verbose=0) - expected).mean()

    assert error(tfc.equalize(model)) < error(model) / 4


def test_a_relu6_stops_it_and_the_report_says_so():
    stack = [
        layers.Conv2D(4, 3, name="one"),
        layers.ReLU(6.0, name="cut"),
        layers.Conv2D(4, 3, name="two"),
    ]
    model = _stack((6, 6, 3), *stack)
    equalized, report = tfc.equalize(model, return_report=True)
    _assert_same(equalized, model)
    assert "left alone: cut before two does not scale" in str(report)
    without = tfc.replace_activations(model, {"relu6": "relu"})
    assert "equalized with those of two" in str(
        tfc.equalize(without, return_report=True)[1]
    )


def test_shared_layers_branches_and_excluded_ones_are_left_alone():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, activation="relu", name="shared")
    x = shared(shared(inputs))
    x = y = layers.Dense(4, activation="relu", name="forked")(x)
    x = layers.Dense(4, activation="relu", name="one")(x)
    x = layers.Dense(4, name="two")(x)
    model = _uneven(keras.Model(inputs, layers.Add()([x, y])))
    equalized, report = tfc.equalize(model, return_report=True)
    assert [change.layer for change in report.changes] == ["one"]
    _assert_same(equalized, model)
    _, report = tfc.equalize(model, exclude="^two$", return_report=True)
    assert report.changes == ()
    with pytest.raises(ValueError, match="matches nothing"):
        tfc.equalize(model, include="nowhere")


def test_zeros_stay_zeros():
    model = _stack(
        (5,), layers.Dense(6, activation="relu", name="one"), layers.Dense(4)
    )
    kernel = model.get_layer("one").kernel
    kernel.assign(np.where(np.arange(30).reshape(5, 6) % 3, 0, kernel.numpy()))
    found = tfc.equalize(model).get_layer("one").kernel.numpy()
    np.testing.assert_array_equal(found == 0, kernel.numpy() == 0)


def test_a_quantized_model_is_refused():
    qat = tfc.quantize_aware(conv_net(), calibration_data=image_data(8)[0])
    with pytest.raises(ValueError, match="`tfc.equalize` works on plain"):
        tfc.equalize(qat)


def test_a_channel_that_training_drove_to_nothing_stays_small():
    inputs = keras.Input((16,))
    first, second = layers.Dense(16, activation="relu"), layers.Dense(4)
    model = keras.Model(inputs, second(first(inputs)))
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16, 16)).astype("float32")
    kernel[:, 3] *= 1e-10
    first.set_weights([kernel, np.full(16, 0.5, "float32")])
    found = tfc.equalize(model)
    bias = np.asarray(found.layers[1].bias)
    assert bias[3] == 0.5
    x = rng.normal(size=(32, 16)).astype("float32")
    np.testing.assert_allclose(
        found.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4
    )
