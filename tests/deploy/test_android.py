"""Android: the files of an app, and Kotlin that computes what training did."""

import pathlib
import shutil
import subprocess

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from small_files import copy_of, examples, model, small_files

import tfcompress as tfc
from tfcompress.deploy.android_kotlin import identifiers
from tfcompress.deploy.runtime import TFLiteRunner, quantize

HERE = pathlib.Path(__file__).parent
needs_kotlin = pytest.mark.skipif(
    not (shutil.which("kotlinc") and shutil.which("java")),
    reason="needs kotlinc and java (Debian's package kotlin)",
)
# Kotlin's templates and escapes, a name of the class's own, two that become equal.
ODD = ("k", "price$usd", 'say "x\\y"', "a b", "a_b")
MEAN, STD = np.float32([0.1, 0.2, 0.3]), np.float32([0.5, 0.7, 1.1])


def two_inputs():
    numbers = keras.Input((2,), name="numbers")
    words = keras.Input((3,), dtype="int32", name="word ids")
    embedded = layers.GlobalAveragePooling1D()(layers.Embedding(5, 2)(words))
    total = layers.Add(name="total")([numbers, embedded])
    return keras.Model([numbers, words], [total, 2 * total])


def odd_names():
    inputs = [keras.Input((2,), name=name) for name in ODD]
    raw = keras.Input((2,), dtype="int8", name="scores")
    total = layers.Add()([*inputs, keras.ops.cast(raw, "float32")])
    return keras.Model([*inputs, raw], total)


def output_names(path):
    """Names of the outputs in the file's signature, by index."""
    signature = Interpreter(str(path)).get_signature_runner()
    return {d["index"]: key for key, d in signature.get_output_details().items()}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Four exports in one folder, and what their classes are called with."""
    root = tmp_path_factory.mktemp("android")
    (root / "whole").mkdir()
    (root / "whole/README.md").write_text("The app's own.")
    tfc.export_android(
        small_files() / "int8.tflite",
        root / "whole",
        name="whole",
        package="com.example.first",
        labels=["cat", "dog", "bird"],
        normalization=(MEAN, STD),
    )
    tfc.export_android(
        model(), root / "plain", name="plain", package="com.example.second"
    )
    tfc.export_android(
        two_inputs(), root / "two", name="two_inputs", package="com.example.third"
    )
    tfc.export_android(
        odd_names(),
        root / "odd",
        name="odd",
        package="com.example.fourth",
        labels=["left", "right"],
    )
    return root


@pytest.fixture(scope="module")
def printed(exports):
    """What the generated classes return on the JVM: values by their names."""
    x = examples(1, seed=3)
    x.tofile(exports / "x.bin")
    runs = {
        "whole": ("whole.tflite", [(x - MEAN) / STD]),
        "plain": ("plain.tflite", [x]),
        "two": ("two_inputs.tflite", [np.float32([[0.5, -2]]), np.int32([[3, 1, 2]])]),
    }
    odd = [np.float32([[i, -i]]) for i in range(len(ODD))]
    runs["odd"] = ("odd.tflite", [*odd, np.int8([[7, -100]])])
    for name, (asset, values) in runs.items():
        # What LiteRT computes stands in for LiteRT on a phone.
        assets = exports / name / "src/main/assets"
        runner, names = TFLiteRunner(assets / asset), output_names(assets / asset)
        for details, found in zip(runner.outputs, runner.integers(values), strict=True):
            found.tofile(assets / f"out_{names[details['index']]}")
    sources = [*HERE.glob("android/*.kt"), *exports.rglob("*.kt")]
    classes = exports / "classes"
    done = subprocess.run(
        ["kotlinc", "-Werror", *map(str, sources), "-d", str(classes)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    library = next(pathlib.Path("/usr/share").rglob("kotlin-stdlib.jar"))
    out = subprocess.run(
        ["java", "-cp", f"{classes}:{library}", "MainKt", str(exports)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return dict(line.split(" ", 1) for line in out.splitlines())


def numbers(text):
    return np.array(text.split(), np.float32)


@pytest.mark.slow
@needs_kotlin
def test_inputs_are_normalized_and_quantized_bit_for_bit(exports, printed):
    assets = exports / "whole/src/main/assets"
    runner = TFLiteRunner(assets / "whole.tflite")
    expected = quantize((examples(1, seed=3) - MEAN) / STD, runner.inputs[0])
    (written,) = assets.glob("in_*")
    found = np.fromfile(written, np.int8).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 50


@needs_kotlin
def test_outputs_are_those_of_the_runner(exports, printed):
    x = examples(1, seed=3)
    runner = TFLiteRunner(exports / "whole/src/main/assets/whole.tflite")
    expected = runner.predict([(x - MEAN) / STD])[0][0]
    np.testing.assert_array_equal(numbers(printed["whole"]), expected)
    order = np.argsort(-expected, kind="stable")[:2]
    labels = np.array(["cat", "dog", "bird"])
    assert printed["labels"].split() == list(labels[order])
    np.testing.assert_array_equal(numbers(printed["scores"]), expected[order])


@needs_kotlin
def test_a_float_model_gets_its_values_as_they_are(exports, printed):
    x = examples(1, seed=3)
    (written,) = (exports / "plain/src/main/assets").glob("in_*")
    np.testing.assert_array_equal(np.fromfile(written, np.float32), x.ravel())
    expected = model().predict(x, verbose=0)[0]
    np.testing.assert_allclose(numbers(printed["plain"]), expected, atol=1e-6)


@needs_kotlin
def test_several_inputs_and_outputs_keep_the_order_of_the_model(exports, printed):
    total = numbers(printed["total"])
    np.testing.assert_allclose(numbers(printed["scaled"]), 2 * total, rtol=1e-6)
    written = {
        path.stat().st_size: path
        for path in (exports / "two/src/main/assets").glob("in_*")
    }
    np.testing.assert_array_equal(np.fromfile(written[8], np.float32), [0.5, -2])
    np.testing.assert_array_equal(np.fromfile(written[12], np.int32), [3, 1, 2])


@needs_kotlin
def test_any_names_and_raw_int8(exports, printed):
    np.testing.assert_array_equal(numbers(printed["odd"]), [17, -110])
    assert printed["side"] == "left"
    assets = exports / "odd/src/main/assets"
    for i, name in enumerate(ODD):
        found = np.fromfile(assets / f"in_{name}", np.float32)
        np.testing.assert_array_equal(found, [i, -i])
    np.testing.assert_array_equal(np.fromfile(assets / "in_scores", np.int8), [7, -100])


def test_identifiers_differ_and_are_no_keywords():
    names = ["a b", "a_b", "aB2", "a-b", "", "ü", "in", "k", "2x", "values2x"]
    found = ["aB", "aB2", "aB22", "aB3", "value", "value2", "inValues", "kValues"]
    assert identifiers(names) == [*found, "values2x", "values2x2"]


@needs_kotlin
def test_pixels_are_red_green_blue_by_rows(printed):
    rows, columns = np.mgrid[:8, :8]
    expected = np.stack([rows, columns, rows + columns], axis=-1)
    np.testing.assert_array_equal(numbers(printed["pixels"]), expected.ravel())


@needs_kotlin
def test_a_wrong_number_of_values_is_refused(printed):
    assert printed["refused"].endswith("must have 192 values. Received: 5")


def test_what_is_written_where(exports):
    files = {
        path.relative_to(exports / "whole").as_posix()
        for path in (exports / "whole").rglob("*")
        if path.is_file() and not path.name.startswith(("in_", "out_"))
    }
    assert files == {
        "README.md",
        "README_whole.md",
        "src/main/assets/whole.tflite",
        "src/main/assets/whole_labels.txt",
        "src/main/java/com/example/first/Whole.kt",
    }
    assets = exports / "whole/src/main/assets"
    metadata = tfc.read_metadata(assets / "whole.tflite")
    assert metadata.name == "whole"
    assert metadata.inputs[0].mean == pytest.approx((0.1, 0.2, 0.3))
    assert metadata.inputs[0].std == pytest.approx((0.5, 0.7, 1.1))
    assert metadata.outputs[0].labels == ("cat", "dog", "bird")
    # Where there is nothing to say, the file stays as it is.
    plain = next(exports.rglob("plain.tflite"))
    assert tfc.read_metadata(plain) is None
    assert (assets / "whole_labels.txt").read_text() == "cat\ndog\nbird\n"
    assert (exports / "whole/README.md").read_text() == "The app's own."
    readme = (exports / "whole/README_whole.md").read_text()
    assert 'implementation("com.google.ai.edge.litert:litert:' in readme
    assert "192 values, 8 x 8 x 3" in readme
    assert "computes (x - [0.1, 0.2, 0.3]) / [0.5, 0.7, 1.1]" in readme
    assert "fun classify" not in next(exports.rglob("Plain.kt")).read_text()
    # Two inputs are no picture.
    assert "Bitmap" not in next(exports.rglob("TwoInputs.kt")).read_text()


@pytest.mark.slow
def test_a_model_is_exported_as_asked(tmp_path):
    result = tfc.export_android(
        model(),
        tmp_path / "new" / "app",
        package="com.example.small",
        kind="int8",
        calibration_data=examples(),
    )
    assert result.class_name == "Small" and result.package == "com.example.small"
    runner = TFLiteRunner(result.asset_path)
    assert runner.inputs[0]["dtype"] == np.int8
    assert "quantize(" in pathlib.Path(result.kotlin_path).read_text()
    assert result.labels_path is None


BAD = {
    "package": ({"package": "digits"}, "Received: package='digits'"),
    "keyword": ({"package": "com.in.fun"}, r"keywords \['fun', 'in'\] as parts"),
    "type": ({"name": "float_array"}, "class FloatArray, .*='float_array_model'"),
    "name": ({"name": "My Net"}, "Received: name='My Net'"),
    "number of labels": ({"labels": ["a"]}, "1 labels for outputs of shapes"),
    "label": ({"labels": ["a", "b\nc", "d"]}, r"Received: 'b\\nc'"),
    "normalization": ({"normalization": 3}, r"must be \(mean, std\). Received: 3"),
    "channels": ({"normalization": ([1, 2], 1)}, "each of the 3 channels"),
    "zero": ({"normalization": (0, 0)}, "std above zero"),
    "input": ({"normalization": {"a": (0, 1)}}, r"names \['a'\]; the inputs are"),
    "kind": ({"kind": "int8"}, "are for a Keras model"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments(case, tmp_path):
    settings, message = BAD[case]
    settings = {"package": "com.example.app"} | settings
    with pytest.raises(ValueError, match=message):
        tfc.export_android(small_files() / "int8.tflite", tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_activations_of_16_bits_have_float_borders(tmp_path):
    result = tfc.export_android(
        keras.Sequential([keras.Input((4,)), layers.Dense(2)]),
        tmp_path,
        name="wide",
        package="com.example.wide",
        kind="int16x8",
        calibration_data=np.float32(np.random.default_rng(0).normal(size=(16, 4))),
    )
    runner = TFLiteRunner(result.asset_path)
    assert runner.inputs[0]["dtype"] == runner.outputs[0]["dtype"] == np.float32


@pytest.mark.slow
def test_files_that_kotlin_cannot_feed(tmp_path):
    with pytest.raises(ValueError, match="is uint8, which LiteRT's Kotlin buffers"):
        tfc.export_android(
            small_files() / "uint8.tflite", tmp_path, package="com.example.app"
        )
    path = tmp_path / "batch.tflite"
    tfc.export_tflite(model(), path, batch_size=4)
    with pytest.raises(ValueError, match="must have a batch of 1"):
        tfc.export_android(path, tmp_path / "app", package="com.example.app")
    with pytest.raises(TypeError, match="must be a Keras model or the path"):
        tfc.export_android(3, tmp_path / "app", package="com.example.app")
    damaged = copy_of("int8.tflite", tmp_path)
    damaged.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="Not a TFLite model"):
        tfc.export_android(damaged, tmp_path / "app", package="com.example.app")
