"""`tfc.export_onnx`: float and integer files that ONNX Runtime computes alike."""

import collections

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers
from networks import Subclassed, compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy import onnx as onnx_module


def run(path, *inputs):
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


@pytest.fixture(scope="module")
def qat():
    keras.utils.set_random_seed(0)
    x, y = image_data()
    model = compiled(tfc.quantize_aware(conv_net(), calibration_data=x))
    model.fit(x, y, epochs=3, verbose=0)
    return model


def test_the_float_file_computes_what_keras_does(tmp_path):
    x, _ = image_data(16)
    model = conv_net()
    result = tfc.export_onnx(model, tmp_path / "m.onnx")
    np.testing.assert_allclose(
        run(result.path, x)[0], model.predict(x, verbose=0), atol=1e-5
    )
    assert result.integer_weights == 0
    assert result.bytes == (tmp_path / "m.onnx").stat().st_size


def test_the_quantized_file_computes_what_was_trained(qat, tmp_path):
    x, _ = image_data(128, seed=1)
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    found, expected = run(result.path, x)[0], qat.predict(x, verbose=0)
    # Integer kernels round once where Keras rounds a float sum: some steps of 1/256.
    assert np.abs(found - expected).max() <= 4 / 256
    assert np.mean(found.argmax(1) == expected.argmax(1)) >= 0.99


def test_weights_are_stored_as_integers_with_a_scale_per_channel(qat, tmp_path):
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    graph = onnx.load(result.path).graph
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    kernels = [n for n in graph.node if n.output[0].endswith("_float")]
    assert result.integer_weights == len(kernels) == 4
    for node in kernels:
        kernel, scale = constants[node.input[0]], constants[node.input[1]]
        axis = next(a.i for a in node.attribute if a.name == "axis")
        assert kernel.dtype == np.int8 and len(scale) == kernel.shape[axis]
    # No float kernel is left beside them.
    assert all(c.ndim < 2 for c in constants.values() if c.dtype == np.float32)


def test_onnx_runtime_uses_integer_kernels(qat, tmp_path):
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(
        result.path, options, providers=["CPUExecutionProvider"]
    )
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    counts = collections.Counter(n.op_type for n in optimized.node)
    assert counts["QLinearConv"] == 2
    assert counts["Conv"] == counts["MatMul"] == counts["Gemm"] == 0


def test_several_inputs(tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    outputs = layers.Dense(3)(layers.Concatenate()([layers.Dense(5)(a), b]))
    model = keras.Model({"a": a, "b": b}, outputs)
    data = {
        k: np.random.default_rng(0).normal(size=(8, n)) for k, n in (("a", 4), ("b", 6))
    }
    data = {k: v.astype("float32") for k, v in data.items()}
    result = tfc.export_onnx(model, tmp_path / "m.onnx")
    np.testing.assert_allclose(
        run(result.path, data["a"], data["b"])[0],
        model.predict(data, verbose=0),
        atol=1e-5,
    )


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_file_that_the_runtimes_own_kernels_get_wrong_is_not_written(
    quantized, wrong, qat, tmp_path, monkeypatch
):
    def differences(path, model, *, fused=True):
        return [wrong, wrong] if fused else [0.0, 0.0]

    monkeypatch.setattr(onnx_module, "_difference", differences)
    model = qat if quantized else conv_net()
    with pytest.raises(ValueError, match="does not compute what model"):
        tfc.export_onnx(model, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_file_that_computes_something_else_is_not_written(qat, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    real = onnx_module._on_grid

    def broken(kernel, axis, name):
        integers, scale = real(kernel, axis, name)
        return integers, scale * 1.5

    monkeypatch.setattr(onnx_module, "_on_grid", broken)
    with pytest.raises(ValueError, match="does not compute what model"):
        tfc.export_onnx(qat, path)
    assert path.read_bytes() == b"old"


def test_an_old_opset(tmp_path):
    with pytest.raises(ValueError, match="Received: opset=11"):
        tfc.export_onnx(conv_net(), tmp_path / "m.onnx", opset=11)


def test_a_subclassed_model_without_inputs(tmp_path):
    model = Subclassed()
    model(image_data(4)[0])
    with pytest.raises(ValueError, match="has no symbolic inputs"):
        tfc.export_onnx(model, tmp_path / "m.onnx")
