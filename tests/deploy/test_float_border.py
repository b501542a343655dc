"""Float layers stay float between integer ones."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.deploy.float_border import without_borders
from tfcompress.deploy.runtime import TFLiteRunner

RULES = [tfc.Rule("island|island_bn|island_relu", quantize=False)]


def _net(island):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="before")(inputs)
    x = island(x)
    x = layers.BatchNormalization(name="island_bn")(x)
    x = layers.ReLU(name="island_relu")(x)
    return keras.Model(inputs, layers.Conv2D(3, 1, name="after")(x))


ISLANDS = {
    "CONV_2D": lambda: layers.Conv2D(40, 3, name="island"),
    "DEPTHWISE_CONV_2D": lambda: layers.DepthwiseConv2D(3, name="island"),
    "FULLY_CONNECTED": lambda: layers.Dense(40, name="island"),
    "TRANSPOSE_CONV": lambda: layers.Conv2DTranspose(4, 3, name="island"),
}


QUICK = (("CONV_2D", "int8"), ("FULLY_CONNECTED", "int16x8"))
CASES = [(o, kind) for o in ISLANDS for kind in ("int8", "int16x8")]


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_a_float_kernel_is_one_in_the_file(operator, kind, tmp_path):
    model = _net(ISLANDS[operator]())
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
    qat = tfc.quantize_aware(model, kind, calibration_data=x, rules=RULES)
    path = tmp_path / "m.tflite"
    result = tfc.export_tflite(qat, path, kind=kind, allow_float=[".*"])
    assert operator in result.float_operators
    assert "SIN" not in result.operators
    assert set(result.float_operators) <= {
        "DEQUANTIZE",
        "QUANTIZE",
        operator,
        # A batch normalization or ReLU that this kernel does not take in.
        "ADD",
        "MUL",
        "RELU",
    }
    found = TFLiteRunner(path).predict([x])[0]
    expected = qat.predict(x, verbose=0)
    # Two steps of the output, of which there are 255 and more.
    np.testing.assert_allclose(found, expected, atol=np.ptp(expected) / 120)


def test_unless_something_may_be_float_it_is_computed_in_integers(tmp_path):
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
    qat = tfc.quantize_aware(
        _net(ISLANDS["CONV_2D"]()), calibration_data=x, rules=RULES
    )
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8")
    assert result.fully_integer


def test_a_border_that_is_not_found(tmp_path):
    path = tmp_path / "m.tflite"
    tfc.export_tflite(_net(ISLANDS["CONV_2D"]()), path)
    with pytest.raises(ValueError, match="0 of 1 float layer"):
        without_borders(path.read_bytes(), 1)
    assert without_borders(path.read_bytes(), 0) == path.read_bytes()
