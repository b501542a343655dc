"""Random, cut and altered files: a clear error or a result, no crash, no hang."""

import os
import resource

import keras
import numpy as np
import pytest
from keras import layers
from networks import conv_net, image_data

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

import tfcompress as tfc  # noqa: E402  After what it may be skipped for.
from tfcompress.deploy.onnx_runtime import ONNXRunner  # noqa: E402

# Files of a kilobyte to six: no reader has a reason to take more than this.
_MOST_GROWTH = 2**29


def _files():
    """One file of each sort of content."""
    keras.utils.set_random_seed(0)
    x, _ = image_data(16)
    qat = tfc.quantize_aware(conv_net(), calibration_data=x)
    inputs = keras.Input((3, 4))
    loop = keras.Model(inputs, layers.LSTM(3)(inputs))
    dense = keras.Input((32,))
    wide = keras.Model(dense, layers.Dense(40)(dense))
    kernel = np.zeros((32, 40), "float32")
    kernel[::7] = 1.0
    wide.layers[-1].set_weights([kernel, np.zeros(40, "float32")])
    labels = tfc.Metadata(outputs=[tfc.TensorMetadata(labels=["a", "b", "c"])])
    return {
        "int8": (qat, {"kind": "int8", "metadata": labels}),
        "loop": (loop, {}),
        "sparse": (wide, {"sparse": True}),
        "float16": (wide, {"kind": "float16", "batch_size": None}),
    }


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    made = {}
    for name, (model, settings) in _files().items():
        path = folder / name
        tfc.export_tflite(model, path, **settings)
        made[name] = path.read_bytes()
    onnx = folder / "m.onnx"
    tfc.export_onnx(conv_net(), onnx)
    made["onnx"] = onnx.read_bytes()
    return made


@pytest.fixture(scope="module")
def verified():
    """The model of the "sparse" and "float16" files."""
    inputs = keras.Input((32,))
    return keras.Model(inputs, layers.Dense(40)(inputs))


def _verify(model, path):
    names = ["LiteRT xnnpack", "TFLite Micro"]
    return tfc.verify(model, path, np.zeros((2, 32)), examples=2, runtimes=names)


def _readers(model):
    return {
        "measure": tfc.measure,
        "check_edgetpu": tfc.check_edgetpu,
        "read_metadata": tfc.read_metadata,
        "benchmark": lambda path: tfc.benchmark(
            path, threads=1, repeats=1, seconds=0, warmup=0
        ),
        "verify": lambda path: _verify(model, path),
    }


def altered(draw, content):
    """Cuts, overwritten bytes and words, moved and repeated pieces."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(("byte", "word", "cut", "copy", "insert")))
        place = draw(st.integers(8, max(9, len(data) - 1)))
        if kind == "byte":
            data[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "word":
            word = draw(
                st.sampled_from((0, 1, 2**31 - 1, 2**31, 2**32 - 1))
                | st.integers(0, 2**32 - 1)
            )
            place -= place % 4
            data[place : place + 4] = word.to_bytes(4, "little")
        elif kind == "cut":
            del data[place:]
        elif kind == "copy":
            start = draw(st.integers(0, len(data)))
            data[place : place + 64] = data[start : start + 64]
        else:
            data[place:place] = draw(st.binary(max_size=16))
    return bytes(data)


def _opencv(path):
    return tfc.check_opencv(path)


def _onnx_runtime(path):
    runner = ONNXRunner(path)
    runner.predict(runner.examples(2))


@pytest.mark.slow
@pytest.mark.parametrize("read", [_onnx_runtime, _opencv])
def test_damaged_onnx_files(contents, tmp_path, read, capfd):
    pytest.importorskip("onnxruntime")
    if read is _opencv:
        pytest.importorskip("cv2")
    _check_reader(
        read,
        tmp_path / "fuzz.onnx",
        lambda draw: altered(draw, contents["onnx"]),
        examples=300 if read is _onnx_runtime else 60,
    )
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "reader", ["measure", "check_edgetpu", "read_metadata", "benchmark", "verify"]
)
@pytest.mark.parametrize("name", ["int8", "loop", "sparse", "float16", "onnx", ""])
def test_damaged_files(contents, verified, tmp_path, name, reader):
    # Those that start processes take longer; the time limit stands for "no hang".
    examples = 60 if reader in ("measure", "check_edgetpu", "read_metadata") else 15

    def content(draw):
        if name:
            return altered(draw, contents[name])
        start = draw(st.sampled_from((b"", b"\x1c\0\0\0TFL3")))
        return start + draw(st.binary(max_size=2000))

    path = tmp_path / "fuzz.tflite"
    _check_reader(_readers(verified)[reader], path, content, examples)


def _check_reader(read, path, content, examples):
    """Reads files of any content: a result, or an error that names the file."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def run(data):
        path.write_bytes(content(data.draw))
        try:
            read(path)
        except ValueError as err:
            # The metadata's own mistakes are of the file that was read as well.
            assert os.fspath(path) in str(err), err

    run()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert 1024 * grown < _MOST_GROWTH
    assert list(path.parent.iterdir()) == [path]
