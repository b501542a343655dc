"""Models of Keras 2 and TFMOT in Keras 3: equal outputs, kept ranges, clear errors."""

import importlib.util
import json
import logging
import os
import pathlib
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.graph import find_layers
from tfcompress.layers import FakeQuant, TransformWeights
from tfcompress.legacy.build import build
from tfcompress.legacy.layers import UnsupportedLegacyLayer, make_layer
from tfcompress.legacy.read import from_config

pytest.importorskip("tf_keras")
# Not imported: that would switch `tf.keras` in this process.
if importlib.util.find_spec("tensorflow_model_optimization") is None:
    pytest.skip("needs TFMOT", allow_module_level=True)

PLAIN = (
    "pruned",
    "clustered",
    "clustered_sparse",
    "recurrent",
    "nested",
    "pruned_nested",
    "clustered_nested",
    "clustered_recurrent",
)
QUANTIZED = ("quantized", "quantized_sparse", "quantized_sequential")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folder that `make_models.py` fills, in a process that may import TFMOT."""
    folder = tmp_path_factory.mktemp("legacy")
    script = pathlib.Path(__file__).with_name("make_models.py")
    root = str(pathlib.Path(tfc.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def _arrays(folder, name):
    with np.load(folder / f"{name}.npz") as file:
        inputs = [file[k] for k in sorted(file) if k.startswith("x")]
        outputs = [file[k] for k in sorted(file) if k.startswith("y")]
    return inputs, outputs


def _predicted(model, inputs):
    found = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("name", [*PLAIN, "old_sequential"])
@pytest.mark.parametrize("source", ["file", "memory"])
def test_predicts_the_same(models, name, source):
    inputs, expected = _arrays(models, name)
    if source == "file":
        model = tfc.from_tfmot(models / f"{name}.h5")
    else:
        model = keras.models.load_model(models / f"live_{name}.keras")
    for found, wanted in zip(_predicted(model, inputs), expected, strict=True):
        # Other kernels sum in another order.
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", ["recurrent", "nested"])
@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_old_files_load(models, name, suffix):
    inputs, expected = _arrays(models, name)
    model = tfc.load_model(models / f"{name}.{suffix}")
    for found, wanted in zip(_predicted(model, inputs), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-6)


def test_what_became_of_an_old_file_saves_and_loads(models, tmp_path):
    inputs, expected = _arrays(models, "recurrent")
    tfc.load_model(models / "recurrent.h5").save(tmp_path / "new.keras")
    model = keras.models.load_model(tmp_path / "new.keras")
    np.testing.assert_allclose(_predicted(model, inputs)[0], expected[0], atol=2e-6)


def test_files_of_keras_3_load_as_ever(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    x = np.ones((2, 3), "float32")
    model.save(tmp_path / "m.keras")
    found = tfc.load_model(tmp_path / "m.keras").predict(x, verbose=0)
    np.testing.assert_array_equal(found, model.predict(x, verbose=0))
    with pytest.raises(ValueError, match="was not written by Keras 2"):
        tfc.from_tfmot(tmp_path / "m.keras")


def test_pruned_weights_are_zero(models):
    model = tfc.from_tfmot(models / "pruned.h5")
    for name in ("c1", "c2", "d1", "d2"):
        kernel = np.asarray(model.get_layer(name).kernel)
        assert np.mean(kernel == 0) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name, clusters", [("clustered", 4), ("clustered_sparse", 6)])
def test_clustered_weights_are_at_their_centroids(models, name, clusters):
    model = tfc.from_tfmot(models / f"{name}.h5")
    for layer in ("c1", "c2", "d1"):
        values = np.unique(np.asarray(model.get_layer(layer).kernel))
        assert 1 < len(values) <= clusters
        if name == "clustered_sparse":
            assert 0 in values


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("source", ["file", "memory"])
def test_quantized_model_rounds_as_tfmots(models, name, source):
    inputs, (expected,) = _arrays(models, name)
    if source == "file":
        model = tfc.from_tfmot(models / f"{name}.h5")
    else:
        model = keras.models.load_model(models / f"live_{name}.keras")
    assert find_layers(model, FakeQuant) and find_layers(model, TransformWeights)
    (found,) = _predicted(model, inputs)
    # A step of a range of about 6 is 0.024, and TFLite rounds a softmax to 1/256. Where
    # sums are taken in another order, a few values tip over to the next step.
    difference = np.abs(found - expected)
    if name == "quantized_sparse":
        # The concatenation has ranges of its own in TFMOT: the report says so.
        assert np.mean(difference) < 0.005
    else:
        assert np.mean(difference) < 0.003
        assert difference.max() < 0.04
        # What is left is a softmax in steps of 1/256.
        float_outputs = _predicted(tfc.strip(model), inputs)[0]
        assert np.mean(np.abs(float_outputs - expected)) > 2 * np.mean(difference)


def test_weights_are_on_tfmots_grid(models):
    model = tfc.from_tfmot(models / "quantized.h5")
    with h5py.File(models / "quantized.h5") as file:
        for wrapper in find_layers(model, TransformWeights):
            group = file[f"model_weights/quant_{wrapper.name}"]
            arrays = {}
            group.visititems(
                lambda path, item, arrays=arrays: arrays.update(
                    {path.split("/")[-1].split(":")[0]: np.asarray(item)}
                    if isinstance(item, h5py.Dataset)
                    else {}
                )
            )
            (key,) = [k for k in arrays if k.endswith("kernel")]
            step = arrays[f"{key}_max"] / 127
            expected = np.clip(np.round(arrays[key] / step), -127, 127) * step
            (found,) = wrapper.effective_weights().values()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_file_holds_the_integers_of_tfmots_own_file(models, tmp_path):
    model, report = tfc.from_tfmot(models / "quantized.h5", return_report=True)
    tfc.export_tflite(model, tmp_path / "ours.tflite", kind="int8")
    theirs, ours = (
        _kernels(read_tflite(path))
        for path in (models / "quantized.tflite", tmp_path / "ours.tflite")
    )
    assert len(theirs) == len(ours) == 5
    for one, two in zip(theirs, ours, strict=True):
        # Folding batch normalization in another order tips a few over.
        assert np.mean(one == two) > 0.995
        assert np.abs(one.astype(int) - two).max() <= 1
    (x,), _ = _arrays(models, "quantized")
    found = [
        TFLiteRunner(path).predict([x])[0]
        for path in (models / "quantized.tflite", tmp_path / "ours.tflite")
    ]
    # Steps of 1/256, of which rounding on the way may add some.
    assert np.abs(found[0] - found[1]).max() < 0.03
    assert report.merged == report.missing == ()


def test_report_names_where_tflite_has_one_scale_and_tfmot_several(models):
    _, report = tfc.from_tfmot(models / "quantized_sparse.h5", return_report=True)
    assert len(report.merged) == 1
    assert "cat" in report.unused
    assert "one scale in TFLite, several in TFMOT: " in str(report)


def _kernels(file):
    """Integers of kernels, in the order of the network."""
    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return [op.inputs[1].value() for op in file.operations if op.operator in kinds]


def test_layers_that_tfmot_left_float_stay_so(models, tmp_path):
    model, report = tfc.from_tfmot(models / "partly_quantized.h5", return_report=True)
    # The wrapper that TFMOT puts around "before" rounds its output only.
    assert sorted(report.floats) == ["before", "conv_b", "gap"]
    assert "float in TFMOT, and here: conv_b, gap, before" in str(report)
    assert [w.name for w in find_layers(model, TransformWeights)] == ["conv"]
    assert report.grids == ("conv",) and report.missing == report.unused == ()
    inputs, (expected,) = _arrays(models, "partly_quantized")
    np.testing.assert_allclose(_predicted(model, inputs)[0], expected, atol=2e-3)


def test_loading_a_quantization_aware_file_names_from_tfmot(models, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        tfc.load_model(models / "quantized.h5")
    assert "tfc.from_tfmot(path) keeps its ranges" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="absl"):
        tfc.load_model(models / "pruned.h5")
    assert not caplog.text


def test_training_goes_on(models):
    model = tfc.from_tfmot(models / "quantized.h5")
    (x,), _ = _arrays(models, "quantized")
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    history = model.fit(x, np.zeros(64), epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_report_tells_what_was_kept(models):
    model, report = tfc.from_tfmot(models / "quantized_sequential.h5", return_report=1)
    assert sorted(report.grids) == ["first", "last", "second"]
    assert report.missing == report.merged == report.unused == ()
    assert str(report).startswith("3 grids of weights and ")
    assert tfc.from_tfmot(models / "pruned.h5", return_report=True)[1] is None


def test_data_are_for_quantized_models_only(models):
    with pytest.raises(ValueError, match="nothing to calibrate"):
        tfc.from_tfmot(models / "pruned.h5", calibration_data=np.ones((4, 12, 12, 3)))


def test_all_that_has_no_counterpart_is_named(models):
    with pytest.raises(ValueError) as error:
        tfc.load_model(models / "lambdas.h5")
    assert "'Lambda' holds Python code" in str(error.value)
    assert "custom_objects={'Lambda': YourLayer}" in str(error.value)


@keras.saving.register_keras_serializable(package="tests")
class Twice(keras.layers.Layer):
    """What the Lambda of `make_models.py` does."""

    def __init__(self, name, **kwargs):
        super().__init__(name=name)

    @classmethod
    def from_config(cls, config):
        return cls(config["name"])

    def call(self, x):
        return 2 * x


def test_function_without_counterpart_is_named(models):
    with pytest.raises(ValueError, match="tf.math.erf"):
        tfc.load_model(models / "lambdas.h5", custom_objects={"Lambda": Twice})


def _one_layer(class_name, config, weights=()):
    layers = [
        {
            "class_name": "InputLayer",
            "config": {"batch_input_shape": [None, 4], "name": "x"},
        },
        {"class_name": class_name, "config": {"name": "layer", **config}},
    ]
    described = from_config("Sequential", {"layers": layers}, {"layer": list(weights)})
    return build(described).model


# Layer, config of Keras 2, and what it computes of x.
_ONE = {
    "hard_sigmoid": (
        "Activation",
        {"activation": "hard_sigmoid"},
        lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    ),
    "LeakyReLU": ("LeakyReLU", {"alpha": 0.3}, lambda x: np.where(x > 0, x, 0.3 * x)),
    "ThresholdedReLU": ("ThresholdedReLU", {"theta": 0.5}, lambda x: x * (x > 0.5)),
    "swish": ("Activation", {"activation": "swish"}, lambda x: x / (1 + np.exp(-x))),
    "registered function": (
        "Activation",
        {"activation": {"class_name": "function", "config": "relu6"}},
        lambda x: np.clip(x, 0, 6),
    ),
    "policy": (
        "ReLU",
        {"dtype": {"class_name": "Policy", "config": {"name": "float32"}}},
        lambda x: np.maximum(x, 0),
    ),
}


@pytest.mark.parametrize("case", _ONE)
def test_layer_computes_what_it_did(case):
    class_name, config, function = _ONE[case]
    x = np.linspace(-4, 8, 32, dtype="float32").reshape(8, 4)
    found = _one_layer(class_name, config).predict(x, verbose=0)
    np.testing.assert_allclose(found, function(x), rtol=1e-5, atol=1e-6)


def test_normalization_along_a_list_of_one_axis():
    arrays = [np.array(a, "float32") for a in ([2, 3], [1, 0], [0, 1], [4, 9])]
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    layers = [
        {
            "class_name": "InputLayer",
            "config": {"batch_input_shape": [None, 2], "name": "x"},
        },
        {
            "class_name": "BatchNormalizationV1",
            "config": {"name": "bn", "axis": [1], "epsilon": 0.0, "fused": None},
        },
    ]
    weights = {"bn": list(zip(names, arrays, strict=True))}
    model = build(from_config("Sequential", {"layers": layers}, weights)).model
    found = model.predict(np.array([[2.0, 4.0]], "float32"), verbose=0)
    np.testing.assert_allclose(found, [[3.0, 3.0]], rtol=1e-6)


@pytest.mark.parametrize(
    "class_name, config, message",
    [
        ("LSTM", {"units": 2, "time_major": True}, "has time_major=True"),
        ("DepthwiseConv2D", {"kernel_size": 2, "groups": 3}, "has groups=3"),
        ("CuDNNLSTM", {"units": 2}, "'CuDNNLSTM' is no layer of Keras 3"),
        ("MyLayer", {}, "custom_objects={'MyLayer': YourLayer}"),
    ],
)
def test_setting_without_counterpart_is_named(class_name, config, message):
    with pytest.raises(UnsupportedLegacyLayer, match=message.replace("{", r"\{")):
        make_layer(class_name, {"name": "layer", **config})


@pytest.mark.parametrize(
    "class_name, config",
    [
        ("DepthwiseConv2D", {"kernel_size": [3, 3], "groups": 1}),
        ("LSTM", {"units": 2, "time_major": False, "implementation": 2}),
        ("Embedding", {"input_dim": 3, "output_dim": 2, "input_length": 5}),
        ("Dense", {"units": 2, "batch_input_shape": [None, 3]}),
    ],
)
def test_settings_that_went_and_meant_nothing_are_dropped(class_name, config):
    assert make_layer(class_name, {"name": "layer", **config}).name == "layer"


def test_weights_that_do_not_fit_are_an_error():
    weights = [("kernel", np.zeros((3, 2))), ("bias", np.zeros(2))]
    with pytest.raises(ValueError, match=r"expected shapes \[\(4, 2\), \(2,\)\]"):
        _one_layer("Dense", {"units": 2}, weights)


def test_subclassed_model_is_told_what_to_do():
    import tf_keras

    class Old(tf_keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="new.set_weights"):
        tfc.from_tfmot(Old())


def test_what_is_no_old_model_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(TypeError, match="is a Keras 3 model already"):
        tfc.from_tfmot(model)
    with pytest.raises(TypeError, match="must be a tf_keras model"):
        tfc.from_tfmot(3)
    with pytest.raises(FileNotFoundError, match="No such model file"):
        tfc.from_tfmot(tmp_path / "absent.h5")
    with pytest.raises(ValueError, match="folder without a SavedModel"):
        tfc.load_model(tmp_path)


def test_weights_file_is_told_apart(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["keras_version"] = "2.4.0"
    with pytest.raises(ValueError, match="holds weights only"):
        tfc.load_model(tmp_path / "w.h5")


def test_damaged_files_are_errors(tmp_path):
    path = tmp_path / "m.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        tfc.load_model(path)
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.4.0"
        file.attrs["model_config"] = json.dumps({"class_name": "Model"})[:-5]
    with pytest.raises(ValueError, match="is damaged"):
        tfc.load_model(path)


def test_neither_tfmot_nor_tf_keras_is_imported_for_an_h5_file(models):
    code = (
        "import sys, tfcompress as tfc\n"
        f"tfc.from_tfmot({str(models / 'quantized.h5')!r})\n"
        "print([m for m in ('tensorflow_model_optimization', 'tf_keras')"
        " if m in sys.modules])"
    )
    root = str(pathlib.Path(tfc.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root
    )
    assert done.stdout.strip().endswith("[]"), done.stderr[-2000:]
