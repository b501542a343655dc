"""OpenCV runs exported ONNX files and computes what ONNX Runtime does."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest
from networks import compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy import opencv
from tfcompress.deploy.onnx_runtime import ONNXRunner
from tfcompress.deploy.programs import installed

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "opencv_threads.py"
needs_opencv = pytest.mark.skipif(
    not installed("cv2"), reason="needs the extra opencv (opencv-python-headless)"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A float and a QDQ file of a trained network with an Add and max-pooling."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("opencv")
    x, y = image_data()
    model = compiled(conv_net())
    model.fit(x, y, epochs=2, verbose=0)
    tfc.export_onnx(model, folder / "float.onnx")
    qat = tfc.quantize_aware(model, calibration_data=x)
    tfc.export_onnx(qat, folder / "int8.onnx")
    return folder


@needs_opencv
def test_a_float_file_runs_and_agrees(files):
    x, _ = image_data(16, seed=1)
    check = tfc.check_opencv(files / "float.onnx", [x], repeats=3)
    assert check.engine == "ENGINE_NEW" and check.batches
    assert check.largest_difference < 1e-5 and check.refusals == {}
    assert check.milliseconds > 0


@needs_opencv
def test_an_integer_file_runs_and_agrees(files):
    x, _ = image_data(16, seed=1)
    check = tfc.check_opencv(files / "int8.onnx", [x])
    # Of the largest probability, next to 1: two steps of 1/256.
    assert check.largest_difference <= 2.01 / 256
    assert np.isnan(check.milliseconds)


@needs_opencv
def test_residual_integer_networks_run_in_the_default_engine(tmp_path):
    x, _ = image_data(64)
    qat = tfc.quantize_aware(tfc.zoo.resnet8((8, 8, 3), 3), calibration_data=x)
    tfc.export_onnx(qat, tmp_path / "m.onnx")
    check = tfc.check_opencv(tmp_path / "m.onnx", [x[:8]])
    # Without it, a Relu behind an Add ends in an assertion there.
    assert check.engine == "ENGINE_NEW" and check.largest_difference <= 8 / 255


@needs_opencv
def test_inputs_may_have_any_name(tmp_path):
    inputs = [keras.Input((8, 8, 3), name=name) for name in ("file", "names")]
    difference = keras.layers.Subtract()(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(difference))
    tfc.export_onnx(model, tmp_path / "m.onnx")
    values = [image_data(4, seed=seed)[0] for seed in (1, 2)]
    check = tfc.check_opencv(tmp_path / "m.onnx", values)
    assert check.largest_difference < 1e-5


@needs_opencv
def test_an_engine_that_fails_is_named_and_the_next_one_tried(
    files, tmp_path, monkeypatch
):
    broken = tmp_path / "child.py"
    broken.write_text(
        "import os, sys\n"
        "if sys.argv[2] == 'ENGINE_NEW': os.abort()\n" + opencv._CHILD.read_text()
    )
    monkeypatch.setattr(opencv, "_CHILD", broken)
    check = tfc.check_opencv(files / "float.onnx")
    assert check.engine == "ENGINE_CLASSIC"
    assert check.refusals == {"ENGINE_NEW": "it ended its process (SIGABRT)"}
    broken.write_text("raise RuntimeError('bufidx >= 0')")
    with pytest.raises(ValueError, match="does not run .* bufidx >= 0; ENGINE_CLASSIC"):
        tfc.check_opencv(files / "float.onnx")


@needs_opencv
def test_other_values_are_no_success(files, monkeypatch):
    real = ONNXRunner.predict
    monkeypatch.setattr(
        ONNXRunner, "predict", lambda self, x: [1.1 * a for a in real(self, x)]
    )
    with pytest.raises(ValueError, match="outputs differ by 0.091 of the largest"):
        tfc.check_opencv(files / "float.onnx")


def test_a_file_that_takes_all_memory_is_refused(tmp_path):
    """Eight billion zeros in a few bytes, which ONNX Runtime computes as it loads."""
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [2**33])
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
            onnx.helper.make_node("ReduceSum", ["zeros"], ["sum"]),
            onnx.helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        "large",
        [info("x", onnx.TensorProto.FLOAT, [1, 2])],
        [info("y", onnx.TensorProto.FLOAT, [1, 2])],
        [shape],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    path = tmp_path / "large.onnx"
    onnx.save(model, path)
    with pytest.raises(ValueError, match="ONNX Runtime cannot load '.*large.onnx'"):
        tfc.check_opencv(path)


def test_a_damaged_or_missing_file_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(FileNotFoundError, match="m.onnx"):
        tfc.check_opencv(path)
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match="cannot load '.*m.onnx': .*[Pp]rotobuf"):
        tfc.check_opencv(path)


def test_without_opencv_the_error_names_the_extra(files, monkeypatch):
    monkeypatch.setattr(opencv, "installed", lambda module: False)
    with pytest.raises(ImportError, match=r"tfcompress\[opencv\]"):
        tfc.check_opencv(files / "float.onnx")
    with pytest.raises(FileNotFoundError, match="No such .onnx file"):
        tfc.check_opencv("absent.onnx")


@needs_opencv
def test_the_example_classifies_with_threads(files, tmp_path):
    import cv2

    rng = np.random.default_rng(0)
    pictures, expected = [], []
    for colour in range(3):
        image = rng.integers(0, 120, (8, 8, 3)).astype(np.uint8)
        image[..., colour] += 130
        pictures.append(str(tmp_path / f"{colour}.png"))
        cv2.imwrite(pictures[-1], image[..., ::-1])
        x = (image.astype(np.float32) / 127.5 - 1.0)[np.newaxis]
        scores = ONNXRunner(files / "float.onnx").predict([x])[0]
        expected.append(f"class {scores.argmax()}, score {scores.max():.4f}")
    done = subprocess.run(
        [
            *(sys.executable, str(EXAMPLE), str(files / "float.onnx"), *pictures),
            *("--threads=2", "--size=8"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[1] for line in lines[:3]] == expected
    assert [line.split(":")[0] for line in lines[3:]] == ["1 thread(s)", "2 thread(s)"]
