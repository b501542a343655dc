"""Whatever users put in a network goes the whole way to an integer-only file."""

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, examples

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner

# The others are slow tests: each takes seconds, and there are many.
QUICK = (
    "dicts of inputs and outputs",
    "embedding",
    "group normalization",
    "simple rnn",
    "subclassed",
    "transposed",
)
NAMES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in ARCHITECTURES
]


# Some are single operations.
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_saves_loads_trains_on_and_becomes_integers(name, tmp_path):
    model = ARCHITECTURES[name]()
    x = examples(model)
    if name == "embedding of float ids":
        x = np.abs(np.round(x * 50))
    y = keras.tree.map_structure(lambda t: np.asarray(t) + 0.1, model(x))
    qat = tfc.quantize_aware(model, calibration_data=iter([x]))
    qat.compile("sgd", "mse")
    qat.fit(x, y, batch_size=4, verbose=0)
    qat.save(tmp_path / "qat.keras")
    loaded = keras.models.load_model(tmp_path / "qat.keras", safe_mode=True)
    expected = keras.tree.flatten(loaded.predict(x, verbose=0))
    for old, new in zip(
        keras.tree.flatten(qat.predict(x, verbose=0)), expected, strict=True
    ):
        np.testing.assert_array_equal(old, new)
    loaded.fit(x, y, batch_size=4, verbose=0)
    assert all(np.isfinite(v.numpy()).all() for v in loaded.weights)
    result = tfc.export_tflite(loaded, tmp_path / "model.tflite", kind="int8")
    assert result.fully_integer
    allowed = {"INT8", "INT16", "INT32", "INT64", "BOOL"}
    assert set(result.tensor_types) <= allowed
    runner = TFLiteRunner(result.path)
    found = runner.predict([np.asarray(v) for v in keras.tree.flatten(x)])
    expected = keras.tree.flatten(loaded.predict(x, verbose=0))
    for one, other, output in zip(expected, found, runner.outputs, strict=True):
        # Each operation is at most a step off; a chain of twenty adds a few up.
        assert np.abs(one - other).max() <= 6 * output["quantization"][0]


@pytest.mark.slow
def test_an_application_goes_the_whole_way(tmp_path):
    model = keras.applications.MobileNetV3Small(
        weights=None, input_shape=(32, 32, 3), classes=10
    )
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (8, 32, 32, 3)).astype("float32")
    y = np.arange(8)
    qat = tfc.quantize_aware(model)
    qat.compile("sgd", "sparse_categorical_crossentropy")
    qat.fit(x, y, verbose=0)
    qat.save(tmp_path / "qat.keras")
    loaded = keras.models.load_model(tmp_path / "qat.keras")
    loaded.fit(x, y, verbose=0)
    result = tfc.export_tflite(loaded, tmp_path / "model.tflite", kind="int8")
    assert result.fully_integer and result.operators["HARD_SWISH"]
