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


def config(**settings):
    return tfc.QuantizationConfig(**settings)


FLOAT_LAYERS = [tfc.Rule("^(conv|hidden)$", quantize=False)]
# Name -> config, rules, largest integer, number of integer kernels.
GRIDS = {
    "float layers": ("int8", FLOAT_LAYERS, 127, 2),
    "one scale": ("int8_per_tensor", (), 127, 4),
    "4 bits": ("int4_weights", (), 7, 4),
    "4 bits in one layer": ("int8", [tfc.Rule("^conv$", weight_bits=4)], 127, 4),
    "learned step": (config(weights="learned_step"), (), 127, 4),
    "learned, one step, 4 bits": (
        *(config(weights="learned_step", weight_bits=4, per_channel=False), (), 7, 4),
    ),
    "ternary": (config(weights="ternary"), (), 1, 4),
}


def integer_kernels(path):
    """The int8 kernels of a file with their scales, and its float kernels.

    Without the factors of a normalization: one for each of 8 channels, if that many.
    """
    graph = onnx.load(path).graph
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    integers = [
        (constants[n.input[0]], constants[n.input[1]])
        for n in graph.node
        if n.output[0].endswith("_float") and constants[n.input[0]].size > 8
    ]
    floats = [c for c in constants.values() if c.dtype == np.float32 and c.ndim > 1]
    return integers, [c for c in floats if c.size > 8]


def assert_within_a_step(result, model, x):
    """Whether a file computes what Keras does, but for sums in another order."""
    expected = model.predict(x, verbose=0)
    steps = np.abs(ONNXRunner(result.path, fused=False).predict([x])[0] - expected)
    assert (steps * 256).max() <= 1.001
    assert np.mean(steps == 0) >= 0.99


@pytest.mark.parametrize("name", GRIDS)
def test_each_grid_is_stored_as_it_was_trained(name, tmp_path):
    settings, rules, highest, count = GRIDS[name]
    keras.utils.set_random_seed(0)
    x, y = image_data(64)
    qat = tfc.quantize_aware(conv_net(), settings, calibration_data=x, rules=rules)
    if name == "learned step":
        compiled(qat).fit(x, y, epochs=1, verbose=0)
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    integers, floats = integer_kernels(result.path)
    assert result.integer_weights >= len(integers) == count
    assert len(floats) == 4 - count
    assert all(k.dtype == np.int8 for k, _ in integers)
    assert max(np.abs(k.astype(int)).max() for k, _ in integers) <= highest
    if name == "one scale":
        assert [scale.shape for _, scale in integers] == [()] * 4
    if name == "4 bits in one layer":
        small = [np.abs(k.astype(int)).max() <= 7 for k, _ in integers]
        assert small == [True, False, False, False]
    assert_within_a_step(result, qat, image_data(128, seed=1)[0])


def test_steps_that_are_powers_of_two_stay_so(tmp_path):
    keras.utils.set_random_seed(0)
    # With biases of all sizes, and no additions: what lies halfway between two steps,
    # as sums of powers of two often do, TensorFlow rounds up and ONNX to even.
    bias = {"bias_initializer": keras.initializers.RandomNormal(stddev=0.01, seed=0)}
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu", **bias)(inputs)
    x = layers.DepthwiseConv2D(3, activation="relu", **bias)(x)
    outputs = layers.Dense(3, activation="softmax", **bias)(layers.Flatten()(x))
    x, _ = image_data(64)
    qat = tfc.quantize_aware(
        keras.Model(inputs, outputs), config(power_of_two=True), calibration_data=x
    )
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    integers, floats = integer_kernels(result.path)
    assert len(integers) == 3 and not floats
    assert all((np.frexp(scale)[0] == 0.5).all() for _, scale in integers)
    assert_within_a_step(result, qat, image_data(128, seed=1)[0])


def test_what_quantize_to_accuracy_left_float_is_so_in_the_file(tmp_path):
    keras.utils.set_random_seed(0)
    x, y = image_data(64)
    model = compiled(conv_net())
    model.fit(x, y, epochs=2, verbose=0)
    scores = iter([1.0, 0.0] + 50 * [1.0])
    quantized = tfc.quantize_to_accuracy(
        model, x, lambda _: next(scores), allowed_drop=0.01
    )
    result = tfc.export_onnx(quantized, tmp_path / "m.onnx")
    integers, floats = integer_kernels(result.path)
    assert len(integers) >= 1 and len(floats) >= 1
    assert len(integers) + len(floats) == 4
    assert_within_a_step(result, quantized, x)


def test_a_normalization_that_nothing_takes_in_is_integer_too(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(moving_mean_initializer="ones")(inputs)
    outputs = layers.Conv2D(4, 3)(layers.ReLU()(x))
    data, _ = image_data(32)
    qat = tfc.quantize_aware(keras.Model(inputs, outputs), calibration_data=data)
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    assert result.integer_weights == result.operators["Conv"] == 2


def test_an_image_of_integers(tmp_path):
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Conv2D(4, 3)(layers.Rescaling(1 / 127.5, -1)(inputs))
    model = keras.Model(inputs, layers.Flatten()(x))
    data = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
    qat = tfc.quantize_aware(model, calibration_data=data)
    for number, each in enumerate((model, qat)):
        result = tfc.export_onnx(each, tmp_path / f"{number}.onnx")
        found, expected = run(result.path, data)[0], each.predict(data, verbose=0)
        np.testing.assert_allclose(found, expected, atol=np.ptp(expected) / 200)


def test_other_kernels_are_stored_too(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    x = layers.EinsumDense("abc,cd->abd", (None, 8))(inputs)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.SeparableConv1D(8, 3, depth_multiplier=2)(x)
    x = layers.Reshape((4, 2, 4))(x)
    x = layers.Conv2DTranspose(6, 3, strides=2)(x)
    shared = layers.Conv2D(6, 1)
    # The same values on another axis, and zeros of two shapes.
    x = layers.Conv2D(4, 1, kernel_initializer="zeros")(shared(shared(x)))
    x = layers.Conv2D(6, 1, kernel_initializer="zeros")(x)
    outputs = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    data = np.random.default_rng(0).normal(size=(32, 6, 8)).astype("float32")
    qat = tfc.quantize_aware(keras.Model(inputs, outputs), calibration_data=data)
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    integers, floats = integer_kernels(result.path)
    assert len(integers) == result.integer_weights >= 11 and not floats


def test_16_bit_activations(tmp_path):
    x, _ = image_data(16)
    qat = tfc.quantize_aware(conv_net(), "int16x8", calibration_data=x)
    with pytest.raises(ValueError, match="`export_tflite` writes int16x8"):
        tfc.export_onnx(qat, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_asymmetric_weights_and_weights_that_are_not_rounded_yet(tmp_path):
    x, _ = image_data(16)
    skewed = config(symmetric_weights=False)
    qat = tfc.quantize_aware(conv_net(), skewed, calibration_data=x)
    with pytest.raises(ValueError, match="An ONNX file has weights with symmetric"):
        tfc.export_onnx(qat, tmp_path / "m.onnx")
    qat = tfc.quantize_aware(conv_net(), calibration_data=x)
    qat.get_layer("hidden").states["kernel"][-1]["bits"].assign(0)
    with pytest.raises(ValueError, match="not rounded now .'hidden'"):
        tfc.export_onnx(qat, tmp_path / "m.onnx")


def test_a_quantized_kernel_that_is_not_in_the_graph(qat, tmp_path, monkeypatch):
    monkeypatch.delitem(onnx_graph._OUTPUT_AXES, "Conv")
    with pytest.raises(ValueError, match=r"no constants .* \['conv', 'depthwise'\]"):
        tfc.export_onnx(qat, tmp_path / "m.onnx")


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

    def broken(kernel, axis, weights):
        integers, scale = real(kernel, axis, weights)
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


# What tf2onnx has no form of: `Erfc`, `Expm1`, `Log1p`.
ACTIVATIONS = {
    "exact gelu": keras.activations.gelu,
    "celu": keras.activations.celu,
    "expm1": keras.ops.expm1,
    "log1p": lambda x: keras.ops.log1p(keras.ops.abs(x)),
}


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_operations_that_onnx_computes_from_others(name, opset, tmp_path):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, ACTIVATIONS[name](layers.Dense(4)(inputs)))
    x = 3 * np.random.default_rng(0).normal(size=(16, 5)).astype("float32")
    result = tfc.export_onnx(model, tmp_path / "m.onnx", opset=opset)
    np.testing.assert_allclose(run(result.path, x)[0], model(x), atol=1e-5)


@pytest.mark.parametrize("find", ["argmax", "argmin"])
def test_the_index_of_the_class_may_be_the_output(find, tmp_path):
    inputs = keras.Input((10,))
    outputs = getattr(keras.ops, find)(layers.Dense(4)(inputs), axis=-1)
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
    result = tfc.export_onnx(model, tmp_path / "m.onnx")
    found = run(result.path, x)[0]
    np.testing.assert_array_equal(found, model.predict(x, verbose=0))


def test_exact_gelu_in_integers(tmp_path):
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="gelu")(inputs)
    x = layers.Dense(3)(x)
    data = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    qat = tfc.quantize_aware(keras.Model(inputs, x), calibration_data=data)
    result = tfc.export_onnx(qat, tmp_path / "m.onnx")
    found, expected = run(result.path, data)[0], qat(data).numpy()
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


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
