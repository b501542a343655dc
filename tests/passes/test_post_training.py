"""`tfc.quantize_post_training`: better integers without training."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import Subclassed, compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.graph import find_layers
from tfcompress.layers import TransformWeights
from tfcompress.passes.adaround import AdaRound
from tfcompress.passes.export_graph import export_graph_and_weights
from tfcompress.passes.kernel_sites import Probe, float_copy, kernel_sites

CONFIGS = {
    "4 bits": "int4_weights",
    "least error": tfc.QuantizationConfig(weight_bits=4, weights="learned_step"),
    "one scale": tfc.QuantizationConfig(weight_bits=4, per_channel=False),
    "power of two": tfc.QuantizationConfig(weight_bits=4, power_of_two=True),
}

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def trained():
    """A trained network and its data."""
    keras.utils.set_random_seed(0)
    x, y = image_data()
    # Logits: of probabilities 8 bits show next to nothing.
    model = compiled(conv_net(softmax=False), from_logits=True)
    model.fit(x, y, batch_size=32, epochs=6, verbose=0)
    return model, x, y


def _error(quantized, model, x):
    difference = quantized.predict(x, verbose=0) - model.predict(x, verbose=0)
    return float(np.square(difference).mean())


def _kernels(model):
    return {
        wrapper.name: wrapper.effective_weights()["kernel"]
        for wrapper in find_layers(model, TransformWeights)
    }


@pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=() if c == "4 bits" else SLOW) for c in CONFIGS],
)
def test_adaptive_rounding_changes_the_outputs_less(config):
    inputs = keras.Input((32,))
    y = layers.Dense(48, activation="relu")(inputs)
    y = layers.BatchNormalization()(layers.Dense(48)(y))
    model = keras.Model(inputs, layers.Dense(4)(layers.ReLU()(y)))
    # Inputs that vary together, as those of layers do: errors can cancel out.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 6)) @ rng.normal(size=(6, 32))
    x = x.astype("float32")
    quantized = {
        rounding: tfc.quantize_post_training(
            model,
            x[:256],
            CONFIGS[config],
            rounding=rounding,
            correct_bias=False,
            steps=300,
        )
        for rounding in ("nearest", "adaround")
    }
    # On examples it did not see.
    errors = {k: _error(q, model, x[256:]) for k, q in quantized.items()}
    assert errors["adaround"] < 0.75 * errors["nearest"]
    kernels = {k: _kernels(q) for k, q in quantized.items()}
    moved = 0
    for name, nearest in kernels["nearest"].items():
        chosen = kernels["adaround"][name]
        steps = np.unique(np.round(np.abs(nearest)[nearest != 0], 6))
        moved += np.count_nonzero(~np.isclose(chosen, nearest, rtol=1e-4))
        # Up or down, never further: the grids are the same.
        assert np.abs(chosen - nearest).max() <= 1.01 * np.max(steps)
    assert moved > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    ["4 bits", *(pytest.param(c, marks=SLOW) for c in CONFIGS if c != "4 bits")],
)
def test_the_file_has_the_very_integers_that_were_chosen(trained, config, tmp_path):
    model, x, _ = trained
    quantized = tfc.quantize_post_training(
        model, x[:64], CONFIGS[config], rounding="adaround", steps=40
    )
    path = tmp_path / "m.tflite"
    result = tfc.export_tflite(quantized, path, kind="int8")
    assert result.fully_integer
    _, weights = export_graph_and_weights(quantized)
    stored = [
        tensor.value().astype("float64")
        * tensor.scale.reshape(
            [
                -1 if axis == tensor.quantized_axis and len(tensor.scale) > 1 else 1
                for axis in range(len(tensor.shape))
            ]
        )
        for tensor in read_tflite(path).constants()
        if tensor.dtype in ("INT4", "INT8") and len(tensor.shape) > 1
    ]
    assert len(weights) == 4
    for weight in weights:
        kernel = np.asarray(weight.values)
        laid_out = kernel if kernel.shape[-1] == 1 else np.moveaxis(kernel, -1, 0)
        # 1e-6 of the largest: float32 scales.
        atol = 1e-6 * np.abs(kernel).max()
        assert any(
            values.size == kernel.size
            and np.allclose(values.ravel(), laid_out.ravel(), atol=atol)
            or values.size == kernel.size
            and np.allclose(values.ravel(), kernel.ravel(), atol=atol)
            for values in stored
        ), weight.name
    found = TFLiteRunner(path).predict([x[64:]])[0]
    expected = quantized.predict(x[64:], verbose=0)
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.98


@pytest.mark.slow
def test_rounded_again_the_weights_are_what_they_are(trained, tmp_path):
    model, x, _ = trained
    quantized = tfc.quantize_post_training(
        model, x[:64], "int4_weights", rounding="adaround", steps=40
    )
    path = tmp_path / "m.keras"
    quantized.save(path)
    loaded = keras.models.load_model(path, safe_mode=True)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), quantized.predict(x, verbose=0)
    )
    plain = tfc.strip(quantized)
    for name, kernel in _kernels(quantized).items():
        latent = quantized.get_layer(name).layer
        latent = getattr(latent, "layer", latent).kernel.numpy()
        # 1e-6: a whole number times a float32 step.
        np.testing.assert_allclose(latent, kernel, rtol=1e-6)
        np.testing.assert_array_equal(plain.get_layer(name).kernel, kernel)


@pytest.mark.slow
def test_the_zeros_of_a_pruned_model_stay(trained):
    model, x, y = trained
    model = keras.models.clone_model(model)
    model.set_weights(trained[0].get_weights())
    compiled(model, from_logits=True)
    pruning = tfc.Pruning(0.6, scope="layer", skip_small_and_last=False)
    model.fit(x, y, epochs=1, verbose=0, callbacks=[pruning])
    quantized = tfc.quantize_post_training(
        model, x[:64], "int4_weights", rounding="adaround", steps=40
    )
    for name, kernel in _kernels(quantized).items():
        before = model.get_layer(name).kernel.numpy()
        assert np.mean(before == 0) > 0.5
        assert np.all(kernel[before == 0] == 0)


def _adapted(quantized, batches, steps):
    exact = float_copy(quantized)
    rounding = AdaRound(quantized, exact, batches, steps=steps)
    pairs = zip(kernel_sites(quantized), kernel_sites(exact), strict=True)
    return [rounding.choose(*pair) for pair in pairs]


def test_one_layer_by_hand():
    """Two weights that both round down, though their inputs are equal."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(1, use_bias=False, name="one")(inputs))
    # Steps of 1 at 4 bits; to the nearest the sum of the two is 5 in place of 5.85.
    model.get_layer("one").kernel.assign([[7.0], [2.4], [3.45]])
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (256, 1)).repeat(3, axis=1).astype("float32")
    x[:, 0] = rng.uniform(-1, 1, 256)
    quantized = tfc.quantize_aware(model, "int4_weights", calibration_data=x)
    (found,) = _adapted(quantized, [[x]], steps=300)
    kernel = quantized.get_layer("one").effective_weights()["kernel"].ravel()
    np.testing.assert_allclose(kernel[0], 7, rtol=1e-6)
    np.testing.assert_allclose(kernel[1:].sum(), 6, rtol=1e-6)
    assert found.changed == 1 and found.weights == 3
    # 0.85^2 and 0.15^2 of the squares of the inputs, 7^2 + 5.85^2.
    np.testing.assert_allclose(found.nearest, 0.85**2 / 83.2, rtol=0.2)
    np.testing.assert_allclose(found.adapted, 0.15**2 / 83.2, rtol=0.2)


def test_the_error_of_no_layer_grows(trained):
    model, x, _ = trained
    quantized = tfc.quantize_aware(model, "int4_weights", calibration_data=x[:64])
    found = _adapted(quantized, [[x[:64]]], steps=3)
    assert [f.layer for f in found] == ["conv", "depthwise", "hidden", "classifier"]
    assert all(f.adapted <= f.nearest for f in found)


@pytest.mark.slow
@pytest.mark.parametrize("config", [pytest.param("4 bits", marks=SLOW), "one scale"])
def test_each_channel_has_its_mean_after_bias_correction(trained, config):
    model, x, _ = trained
    x = x[:96]
    off = {}
    for corrects in (False, True):
        quantized = tfc.quantize_post_training(
            model, x, CONFIGS[config], correct_bias=corrects
        )
        # The float model: what the layers compute before their activation.
        plain = tfc.quantize_aware(model, CONFIGS[config])
        exact = float_copy(plain)
        pairs = zip(kernel_sites(quantized), kernel_sites(exact), strict=True)
        off[corrects] = [_off_mean(quantized, exact, *pair, x) for pair in pairs]
    # What is left comes of calibrating the ranges again, once biases are right.
    assert sum(off[True]) < sum(off[False]) / 3


def _off_mean(quantized, exact, site, twin, x):
    """How far the mean of a channel is off, before the activation."""
    means = []
    for model, one in ((quantized, site), (exact, twin)):
        outputs = Probe(model, one.outputs)([x])[0]
        following = one.normalization
        if following is not None and one.wrapper.layer is one.layer:
            outputs = np.asarray(following(outputs))
        means.append(outputs.reshape(-1, outputs.shape[-1]).mean(axis=0))
    return float(np.abs(means[0] - means[1]).max())


def test_bias_correction_against_numpy():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, name="one")(inputs))
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3)).astype("float32")
    model.get_layer("one").kernel.assign(kernel)
    x = rng.uniform(0, 1, (64, 4)).astype("float32")
    quantized = tfc.quantize_post_training(model, x, "int4_weights")
    wrapper = quantized.get_layer("one")
    step = np.abs(kernel).max(axis=0) / 7
    rounded = np.floor(kernel / step + 0.5) * step
    # Inputs have 256 values from 0 to their largest.
    grid = x.max() / 255
    expected = (x @ kernel - np.floor(x / grid + 0.5) * grid @ rounded).mean(axis=0)
    # 1e-3: an input that lies halfway between two values may go either way.
    np.testing.assert_allclose(wrapper.layer.bias.numpy(), expected, atol=1e-3)


def test_a_layer_without_bias_or_normalization_is_left():
    inputs = keras.Input((4,))
    x = layers.Dense(3, use_bias=False)(inputs)
    model = keras.Model(inputs, x)
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    quantized = tfc.quantize_post_training(model, x, "int4_weights")
    assert len(quantized.weights) == len(
        tfc.quantize_aware(model, "int4_weights").weights
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranges", ["mse", "percentile", "kl"])
def test_every_way_to_calibrate(trained, ranges, tmp_path):
    model, x, y = trained
    config = tfc.QuantizationConfig(ranges=ranges, percentile=99.9)
    quantized = tfc.quantize_post_training(model, x[:96], config)
    result = tfc.export_tflite(quantized, tmp_path / "m.tflite", kind="int8")
    assert result.fully_integer
    assert tfc.measure(tmp_path / "m.tflite", data=(x, y)).accuracy > 0.9


def test_a_subclassed_model():
    x, _ = image_data(32)
    model = Subclassed()
    model(x)
    quantized = tfc.quantize_post_training(model, x, rounding="adaround", steps=10)
    assert _error(quantized, model, x) < 1e-4


@pytest.mark.slow
def test_shared_layers_of_a_recurrent_model(tmp_path):
    inputs = keras.Input((4, 3))
    recurrent = keras.Model(inputs, layers.Dense(2)(layers.SimpleRNN(5)(inputs)))
    steps = np.random.default_rng(0).normal(size=(32, 4, 3)).astype("float32")
    # An iterator of batches can be read once only.
    data = iter([(steps[:16], np.zeros(16)), (steps[16:], np.zeros(16))])
    quantized = tfc.quantize_post_training(
        recurrent, data, rounding="adaround", steps=10
    )
    result = tfc.export_tflite(quantized, tmp_path / "m.tflite", kind="int8")
    assert result.fully_integer


def test_memory_is_bounded(trained, monkeypatch):
    model, x, _ = trained
    monkeypatch.setattr("tfcompress.passes.adaround._MOST_BYTES", 50_000)
    quantized = tfc.quantize_aware(model, "int4_weights", calibration_data=x)
    exact = float_copy(quantized)
    batches = [[x[i : i + 32]] for i in range(0, 192, 32)]
    rounding = AdaRound(quantized, exact, batches, steps=1)
    for pair in zip(kernel_sites(quantized), kernel_sites(exact), strict=True):
        inputs, targets = rounding._examples(*pair)
        assert 1 <= len(inputs) == len(targets) <= 192
        # Each batch gives a whole number of examples.
        assert inputs.nbytes + targets.nbytes <= 1.5 * 50_000


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rounding": "down"}, "`rounding` must be one of"),
        ({"rounding": "adaround", "steps": 0}, "`steps` must be"),
        (
            {
                "rounding": "adaround",
                "config": tfc.QuantizationConfig(weights="ternary"),
            },
            "symmetric grids",
        ),
        ({"config": "int3"}, "Received: config='int3'"),
        ({"rules": [tfc.Rule("nowhere", weight_bits=4)]}, "matches nothing"),
    ],
)
def test_arguments_out_of_place(settings, text):
    x, _ = image_data(8)
    with pytest.raises(ValueError, match=text):
        tfc.quantize_post_training(conv_net(), x, **settings)


def test_data_that_do_not_fit():
    with pytest.raises(ValueError, match="`calibration_data` does not fit"):
        tfc.quantize_post_training(conv_net(), np.zeros((4, 3, 3, 3), "float32"))
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        tfc.quantize_post_training("model", np.zeros((4, 3)))


def test_a_model_without_kernels():
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, keras.ops.relu(inputs * 2) - 0.5)
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 2)).astype("float32")
    quantized = tfc.quantize_post_training(model, x)
    assert np.abs(quantized(x) - model(x)).max() < 0.05
