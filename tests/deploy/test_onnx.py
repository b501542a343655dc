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
from tfcompress.deploy import onnx_graph
from tfcompress.deploy.onnx_runtime import ONNXRunner


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


def test_a_relu_that_rounding_does_anyway_is_left_out(tmp_path):
    x, _ = image_data(64)
    qat = tfc.quantize_aware(tfc.zoo.resnet8((8, 8, 3), 3), calibration_data=x)
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    assert "Relu" not in result.operators and result.operators["Add"] == 3
    found = ONNXRunner(result.path, fused=False).predict([x])[0]
    expected = qat.predict(x, verbose=0)
    assert np.mean(np.abs(found - expected) * 256 <= 1.001) >= 0.99


def test_a_relu_that_others_read_stays():
    node = onnx.helper.make_node
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("QuantizeLinear", ["a", "scale", "zero"], ["b"]),
        node("Relu", ["x"], ["c"]),
        node("QuantizeLinear", ["c", "scale", "one"], ["d"]),
        node("Relu", ["x"], ["e"]),
        node("QuantizeLinear", ["e", "scale", "zero"], ["f"]),
        node("Neg", ["e"], ["g"]),
        node("Relu", ["x"], ["h"]),
    ]
    arrays = {"scale": np.float32(1), "zero": np.uint8(0), "one": np.uint8(1)}
    constants = [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()]
    tensor = onnx.helper.make_tensor_value_info
    x, h = (tensor(name, onnx.TensorProto.FLOAT, [2]) for name in "xh")
    graph = onnx.helper.make_graph(nodes, "g", [x], [h], constants)
    model = onnx.helper.make_model(graph)
    assert onnx_graph.drop_absorbed_relus(model) == 1
    # Gone is the first; the others' readers do not clip, or there are more of them.
    assert [n.input[0] for n in model.graph.node if n.op_type == "Relu"] == ["x"] * 3
    assert model.graph.node[0].op_type == "QuantizeLinear"
    assert model.graph.node[0].input[0] == "x"


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
    def differences(path, model, inputs, *, fused=True):
        return [wrong, wrong] if fused else [0.0, 0.0]

    monkeypatch.setattr(onnx_module, "_difference", differences)
    model = qat if quantized else conv_net()
    with pytest.raises(ValueError, match="does not compute what model"):
        tfc.export_onnx(model, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_file_that_computes_something_else_is_not_written(qat, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    real = onnx_graph._on_grid

    def broken(kernel, axis, name):
        integers, scale = real(kernel, axis, name)
        return integers, scale * 1.5

    monkeypatch.setattr(onnx_graph, "_on_grid", broken)
    with pytest.raises(ValueError, match="does not compute what model"):
        tfc.export_onnx(qat, path)
    assert path.read_bytes() == b"old"


def test_each_operation_is_within_one_step_of_what_was_trained(qat, tmp_path):
    x, _ = image_data(128, seed=1)
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    expected = qat.predict(x, verbose=0)
    steps = np.abs(ONNXRunner(result.path, fused=False).predict([x])[0] - expected)
    # The softmax has a fixed step of 1/256; a sum in another order can round one value
    # the other way.
    assert (steps * 256).max() <= 1.001
    assert np.mean(steps == 0) >= 0.99
    fused = np.abs(ONNXRunner(result.path).predict([x])[0] - expected)
    assert np.mean(fused * 256 <= 1.001) >= 0.95


@pytest.mark.parametrize("opset", [13, 18])
def test_the_opset_is_the_one_asked_for(qat, opset, tmp_path):
    for number, model in enumerate((conv_net(), qat)):
        path = tmp_path / f"{number}.onnx"
        result = tfc.export_onnx(model, path, opset=opset)
        versions = {o.domain: o.version for o in onnx.load(path).opset_import}
        assert versions[""] == result.opset == opset


@pytest.mark.parametrize("opset", [12, 19, "17"])
def test_other_opsets(opset, tmp_path):
    with pytest.raises(ValueError, match=f"Received: opset={opset}"):
        tfc.export_onnx(conv_net(), tmp_path / "m.onnx", opset=opset)


def test_the_batch_is_open_or_as_asked(tmp_path):
    x, _ = image_data(5)
    model = conv_net()
    expected = model.predict(x, verbose=0)
    opened = tfc.export_onnx(model, tmp_path / "open.onnx")
    for rows in (1, 5):
        found = run(opened.path, x[:rows])[0]
        np.testing.assert_allclose(found, expected[:rows], atol=1e-5)
    fixed = tfc.export_onnx(model, tmp_path / "fixed.onnx", batch_size=2)
    assert ONNXRunner(fixed.path).inputs[0].shape == [2, 8, 8, 3]
    found = ONNXRunner(fixed.path).predict([x[:2]])[0]
    np.testing.assert_allclose(found, expected[:2], atol=1e-5)
    with pytest.raises(ValueError, match="Received: batch_size=0"):
        tfc.export_onnx(model, tmp_path / "m.onnx", batch_size=0)


def test_the_runner_times_a_file_and_refuses_what_is_none(tmp_path):
    result = tfc.export_onnx(conv_net(), tmp_path / "m.onnx")
    assert ONNXRunner(result.path).latency_ms(repeats=3, seconds=0) > 0
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="ONNX Runtime cannot load"):
        ONNXRunner(tmp_path / "bad.onnx")
    with pytest.raises(FileNotFoundError, match="No such .onnx file"):
        ONNXRunner(tmp_path / "absent.onnx")


def test_a_subclassed_model_without_inputs(tmp_path):
    model = Subclassed()
    model(image_data(4)[0])
    with pytest.raises(ValueError, match="has no symbolic inputs"):
        tfc.export_onnx(model, tmp_path / "m.onnx")
