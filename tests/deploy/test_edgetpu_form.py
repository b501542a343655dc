"""`export_tflite(..., target="edgetpu")`: old operators, equal integers."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.tflite_file import read_tflite

_RNG = np.random.default_rng(0)


def _model(shape, *stack):
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


# Model, operators of the plain file that version 16 has not, those of ours.
_CASES = {
    "dense on positions": (
        lambda: _model((5, 8), layers.Dense(6, activation="relu")),
        {"FULLY_CONNECTED": 5},
        ["RESHAPE", "CONV_2D", "RESHAPE"],
    ),
    "dense without bias on an image": (
        lambda: _model((4, 3, 8), layers.Dense(6, use_bias=False)),
        {"FULLY_CONNECTED": 5},
        ["CONV_2D"],
    ),
    "grouped convolution": (
        lambda: _model((6, 6, 8), layers.Conv2D(12, 3, groups=4, activation="relu")),
        {"CONV_2D": 6},
        ["SPLIT", *["CONV_2D"] * 4, "CONCATENATION"],
    ),
    "grouped without bias": (
        lambda: _model((6, 6, 4), layers.Conv2D(4, 2, groups=2, use_bias=False)),
        {"CONV_2D": 6},
        ["SPLIT", "CONV_2D", "CONV_2D", "CONCATENATION"],
    ),
    "grouped convolution before an ordinary one": (
        lambda: _model((6, 6, 4), layers.Conv2D(4, 2, groups=2), layers.Conv2D(3, 1)),
        {"CONV_2D": 6},
        ["SPLIT", "CONV_2D", "CONV_2D", "CONCATENATION", "CONV_2D"],
    ),
    "grouped convolution behind an ordinary one": (
        lambda: _model((6, 6, 3), layers.Conv2D(4, 1), layers.Conv2D(4, 2, groups=2)),
        {"CONV_2D": 6},
        ["CONV_2D", "SPLIT", "CONV_2D", "CONV_2D", "CONCATENATION"],
    ),
    "dense with a scale a unit": (
        lambda: _model((7,), layers.Dense(5)),
        {},
        ["RESHAPE", "CONV_2D", "RESHAPE"],
    ),
}


def _qat(case, config="int8"):
    keras.utils.set_random_seed(1)
    build, old, operators = _CASES[case]
    model = build()
    x = _RNG.normal(size=(64, *model.input_shape[1:])).astype("float32")
    return tfc.quantize_aware(model, config, calibration_data=x), x, old, operators


@pytest.mark.parametrize("case", _CASES)
def test_integers_stay_the_same(case, tmp_path):
    qat, x, newer, operators = _qat(case)
    plain, ours = tmp_path / "plain.tflite", tmp_path / "edgetpu.tflite"
    tfc.export_tflite(qat, plain, kind="int8")
    result = tfc.export_tflite(qat, ours, kind="int8", target="edgetpu")
    versions = {op.operator: op.version for op in read_tflite(plain).operations}
    for operator, version in newer.items():
        assert versions[operator] == version  # Else there would be nothing to do.
    assert [op.operator for op in read_tflite(ours).operations] == operators
    assert result.fully_integer
    expected = TFLiteRunner(plain).integers([x])[0]
    found = TFLiteRunner(ours).integers([x])[0]
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", _CASES)
def test_all_of_it_is_mapped(case, tmp_path):
    qat, *_ = _qat(case)
    path = tmp_path / "m.tflite"
    tfc.export_tflite(qat, path, kind="int8", target="edgetpu")
    check = tfc.check_edgetpu(path)
    assert check.fully_mapped and all(op.certain for op in check.operations)


def test_dense_with_one_scale_stays_a_dense_layer(tmp_path):
    qat, x, _, _ = _qat("dense with a scale a unit", "int8_per_tensor")
    tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8", target="edgetpu")
    (op,) = read_tflite(tmp_path / "m.tflite").operations
    assert (op.operator, op.version) == ("FULLY_CONNECTED", 4)


def test_plain_model_gets_one_scale_for_a_dense_kernel(tmp_path):
    model = _model((12,), layers.Dense(9, activation="relu"), layers.Dense(4))
    x = _RNG.normal(size=(64, 12)).astype("float32")
    path = tmp_path / "m.tflite"
    tfc.export_tflite(
        model, path, kind="int8", target="edgetpu", calibration_data=x, io="uint8"
    )
    file = read_tflite(path)
    assert [op.operator for op in file.operations] == [
        "QUANTIZE",
        "FULLY_CONNECTED",
        "FULLY_CONNECTED",
        "QUANTIZE",
    ]
    assert file.inputs[0].dtype == file.outputs[0].dtype == "UINT8"
    assert file.inputs[0].shape == (1, 12) and not file.inputs[0].dynamic
    kernels = [op.inputs[1] for op in file.operations[1:3]]
    assert [k.scale.size for k in kernels] == [1, 1]
    assert tfc.check_edgetpu(path).fully_mapped
    found = TFLiteRunner(path).predict([x])[0]
    expected = model.predict(x, verbose=0)
    # 8 bits of weights and activations, two layers.
    np.testing.assert_allclose(found, expected, atol=0.05 * np.ptp(expected))


def _exported_twice(model, quantized, folder):
    """The usual file and that for an Edge TPU, which compute equal integers."""
    x = _RNG.normal(size=(16, *model.input_shape[1:])).astype("float32")
    source, data = model, {"calibration_data": x}
    if quantized:
        source, data = tfc.quantize_aware(model, calibration_data=x), {}
    plain, ours = folder / "plain.tflite", folder / "edgetpu.tflite"
    tfc.export_tflite(source, plain, kind="int8", **data)
    tfc.export_tflite(source, ours, kind="int8", target="edgetpu", **data)
    expected = TFLiteRunner(plain).integers([x])[0]
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(TFLiteRunner(ours).integers([x])[0], expected)
    assert tfc.check_edgetpu(ours).fully_mapped
    return read_tflite(plain).operations, read_tflite(ours).operations


@pytest.mark.parametrize("order", ["before", "behind"])
def test_plain_convolution_beside_a_grouped_one_is_mapped_and_equal(order, tmp_path):
    build, newer, operators = _CASES[f"grouped convolution {order} an ordinary one"]
    plain, ours = _exported_twice(build(), False, tmp_path)
    assert {op.operator: op.version for op in plain} == newer
    assert [op.operator for op in ours] == operators
    assert {op.version for op in ours if op.operator == "CONV_2D"} == {3}


@pytest.mark.parametrize("quantized", [True, False])
def test_upsampling_is_one_operation_and_equal(quantized, tmp_path):
    model = _model((4, 6, 3), layers.UpSampling2D(2), layers.Conv2D(4, 1))
    _, ours = _exported_twice(model, quantized, tmp_path)
    assert [op.operator for op in ours] == ["RESIZE_NEAREST_NEIGHBOR", "CONV_2D"]


@pytest.mark.parametrize("quantized", [True, False])
def test_upsampling_of_a_sequence_is_mapped_and_equal(quantized, tmp_path):
    model = _model((8, 3), layers.UpSampling1D(3), layers.Conv1D(4, 3))
    _, ours = _exported_twice(model, quantized, tmp_path)
    names = {op.operator for op in ours}
    assert names == {"CONCATENATION", "RESHAPE", "CONV_2D"}


@pytest.mark.parametrize("shape", [(4, 6, 3), (6, 3)])
def test_upsampling_may_be_shared(shape, tmp_path):
    shared = layers.UpSampling2D(2) if len(shape) == 3 else layers.UpSampling1D(2)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, shared(shared(inputs)))
    _exported_twice(model, False, tmp_path)


@pytest.mark.parametrize(
    "stack, operators",
    [
        (lambda c: c(4, activation="relu"), ["TRANSPOSE_CONV", "RELU"]),
        (lambda c: (c(4), layers.ReLU(6.0)), ["TRANSPOSE_CONV", "RELU6"]),
        (
            lambda c: (
                c(4, use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
            ),
            ["TRANSPOSE_CONV", "RELU"],
        ),
    ],
    ids=["its own", "layer", "normalized"],
)
def test_activation_of_a_transposed_convolution_goes_behind_it(
    stack, operators, tmp_path
):
    def transposed(filters, **options):
        return layers.Conv2DTranspose(filters, 3, 2, "same", **options)

    stack = stack(transposed)
    model = _model((5, 4, 3), *(stack if isinstance(stack, tuple) else [stack]))
    for weight in model.weights:
        low = 0.5 if "variance" in weight.name or "gamma" in weight.name else -1
        weight.assign(_RNG.uniform(low, 1.5, weight.shape))
    plain, ours = _exported_twice(model, False, tmp_path)
    assert [(op.operator, op.version) for op in plain] == [("TRANSPOSE_CONV", 4)]
    assert [op.operator for op in ours] == operators
    assert ours[0].version == 3
    before, after = ours[0].outputs[0], ours[1].outputs[0]
    assert (before.scale, before.zero_point) == (after.scale, after.zero_point)


@pytest.mark.parametrize("activation", ["elu", "softplus"])
def test_file_that_the_compiler_refuses_is_not_written(activation, tmp_path):
    model = _model((4,), layers.Dense(4), layers.Activation(activation))
    x = _RNG.normal(size=(16, 4)).astype("float32")
    qat = tfc.quantize_aware(model, calibration_data=x)
    path = tmp_path / "m.tflite"
    with pytest.raises(ValueError, match="does not know EXP version 2") as error:
        tfc.export_tflite(qat, path, kind="int8", target="edgetpu")
    assert "target=" not in str(error.value)
    assert not list(tmp_path.iterdir())
    remedy = {activation: "relu6"}
    assert f"{remedy}".replace("'", '"') in str(error.value)
    qat = tfc.quantize_aware(tfc.replace_activations(model, remedy), calibration_data=x)
    tfc.export_tflite(qat, path, kind="int8", target="edgetpu")
    assert tfc.check_edgetpu(path).fully_mapped


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "float32"}, "needs kind='int8'. Received: kind='float32'"),
        ({"kind": "int8", "io": "float32"}, "needs io='int8' or 'uint8'"),
        ({"kind": "int8", "batch_size": None}, "needs batch_size=1"),
        ({"kind": "int8", "target": "tpu"}, "`target` must be one of"),
    ],
)
def test_settings_out_of_place_are_errors(settings, message, tmp_path):
    model = _model((4,), layers.Dense(4))
    with pytest.raises(ValueError, match=message):
        settings = {"target": "edgetpu", **settings}
        tfc.export_tflite(model, tmp_path / "m.tflite", **settings)
