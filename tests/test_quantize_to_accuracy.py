"""`tfc.quantize_to_accuracy`: what costs too much stays float."""

import keras
import numpy as np
import pytest
from networks import compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.graph import find_layers
from tfcompress.layers import FakeQuant, TransformWeights
from tfcompress.quantize_to_accuracy import AccuracyNotReachedError


@pytest.fixture(scope="module")
def data():
    return image_data(96)


@pytest.fixture(scope="module")
def model(data):
    """A trained network whose dense layers are bad to round: their channels differ."""
    keras.utils.set_random_seed(0)
    x, y = data
    model = compiled(conv_net())
    model.fit(x, y, batch_size=32, epochs=6, verbose=0)
    hidden, classifier = model.get_layer("hidden"), model.get_layer("classifier")
    factor = 10.0 ** np.linspace(-3, 1, 8)
    hidden.kernel.assign(hidden.kernel.numpy() * factor)
    hidden.bias.assign(hidden.bias.numpy() * factor)
    classifier.kernel.assign(classifier.kernel.numpy() / factor[:, None])
    return model


def _nearness(model, x):
    """A function that is 0 for the model itself, and less the further one is off."""
    expected = model.predict(x, verbose=0)

    def evaluate(other):
        if isinstance(other, str):
            return -np.abs(TFLiteRunner(other).predict([x])[0] - expected).mean()
        return -np.abs(other.predict(x, verbose=0) - expected).mean()

    return evaluate


def test_nothing_is_returned_where_nothing_is_lost(model, data):
    x, y = data

    def accuracy(model):
        return np.mean(model.predict(x, verbose=0).argmax(1) == y)

    quantized, report = tfc.quantize_to_accuracy(
        model, x, accuracy, allowed_drop=1.0, return_report=True
    )
    assert len(find_layers(quantized, TransformWeights)) == 4
    (attempt,) = report.attempts
    assert attempt is report.chosen and attempt.layers == ()
    assert report.baseline == accuracy(model)
    assert attempt.accuracy == accuracy(quantized)


@pytest.mark.parametrize(
    "on_files", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_the_layer_that_loses_most_stays_float(model, data, on_files, tmp_path):
    x, _ = data
    evaluate = _nearness(model, x)
    quantized, report = tfc.quantize_to_accuracy(
        model,
        x,
        evaluate,
        allowed_drop=0.02,
        config="int8_per_tensor",
        most_float=1.0,
        on_files=on_files,
        return_report=True,
    )
    assert report.attempts[0].accuracy < -0.02
    assert "classifier" in report.chosen.layers
    assert report.chosen.accuracy >= report.baseline - 0.02
    left = {wrapper.name for wrapper in find_layers(quantized, TransformWeights)}
    assert {"conv", "depthwise"} <= left and "classifier" not in left
    assert "* " in str(report) and "classifier" in str(report)
    # What is float in the model is so in the file, and computes the same.
    path = tmp_path / "m.tflite"
    result = tfc.export_tflite(
        quantized, path, kind="int8", io="float32", allow_float=[".*"]
    )
    assert "FULLY_CONNECTED" in result.float_operators
    assert "SIN" not in result.operators
    assert not {"CONV_2D", "DEPTHWISE_CONV_2D"} & set(result.float_operators)
    kernels = [t for t in read_tflite(path).constants() if t.shape == (3, 8)]
    assert [t.dtype for t in kernels] == ["FLOAT32"]
    found = TFLiteRunner(path).predict([x])[0]
    # A step of 8 bits of a rounded activation may fall either way.
    np.testing.assert_allclose(found, quantized.predict(x, verbose=0), atol=0.03)
    with pytest.raises(ValueError, match="FULLY_CONNECTED"):
        tfc.export_tflite(quantized, path, kind="int8", allow_float=["ELU"])


@pytest.mark.slow
def test_as_few_as_suffice_are_found_by_halving(model, data):
    x, _ = data
    calls = []

    def evaluate(model):
        calls.append(len(find_layers(model, TransformWeights)))
        return 1.0 if calls[-1] <= 1 else 0.0

    quantized, report = tfc.quantize_to_accuracy(
        model, x, evaluate, allowed_drop=0.5, most_float=1.0, return_report=True
    )
    assert calls[:2] == [0, 4] and len(calls) == 1 + len(report.attempts)
    assert len(find_layers(quantized, TransformWeights)) <= 1
    # One tensor fewer would not have done: the search went there, or came from there.
    lengths = [len(a.layers) for a in report.attempts if a.accuracy == 0]
    assert max(lengths) < len(report.chosen.layers)
    assert report.chosen.accuracy == 1


@pytest.mark.slow
def test_rounded_weights_are_kept_in_what_stays_quantized(model, data):
    x, _ = data
    arguments = {"config": "int4_weights", "rounding": "adaround", "steps": 20}
    whole = tfc.quantize_post_training(model, x, **arguments)
    quantized = tfc.quantize_to_accuracy(
        model,
        x,
        lambda m: -float(len(find_layers(m, TransformWeights)) > 3),
        allowed_drop=0.5,
        **arguments,
    )
    left = find_layers(quantized, TransformWeights)
    assert 1 <= len(left) <= 3
    for wrapper in left:
        same = whole.get_layer(wrapper.name)
        for old, new in zip(same.get_weights(), wrapper.get_weights(), strict=True):
            np.testing.assert_array_equal(new, old)


@pytest.mark.slow
def test_all_activations_get_16_bits_first(model, data):
    x, _ = data

    def evaluate(model):
        found = {quantizer.bits for quantizer in find_layers(model, FakeQuant)}
        return 0.0 if 8 in found else 1.0

    quantized, report = tfc.quantize_to_accuracy(
        model, x, evaluate, allowed_drop=0, fallback="int16", return_report=True
    )
    assert [a.activation_bits for a in report.attempts] == [8, 16]
    assert report.chosen.layers == () and evaluate(quantized) == 1
    with pytest.raises(AccuracyNotReachedError, match="raise `most_float`") as caught:
        tfc.quantize_to_accuracy(model, x, evaluate, allowed_drop=0, most_float=0.3)
    assert caught.value.report.chosen is None
    assert all(a.accuracy == 0 for a in caught.value.report.attempts)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"evaluate": "accuracy"}, TypeError, "`evaluate` must be a function"),
        ({"allowed_drop": -0.1}, ValueError, "`allowed_drop`"),
        ({"allowed_drop": float("nan")}, ValueError, "`allowed_drop`"),
        ({"fallback": "int32"}, ValueError, "`fallback` must be one of"),
        ({"most_float": 2}, ValueError, "`most_float`"),
        ({"evaluate": lambda model: None}, ValueError, "finite number"),
        ({"evaluate": lambda model: np.nan}, ValueError, "finite number"),
    ],
    ids=["evaluate", "drop", "nan", "fallback", "most", "none", "result"],
)
def test_arguments_out_of_place(model, data, settings, error, text):
    given = {"evaluate": lambda model: 1.0, "allowed_drop": 0.1} | settings
    with pytest.raises(error, match=text):
        tfc.quantize_to_accuracy(model, data[0], given.pop("evaluate"), **given)
