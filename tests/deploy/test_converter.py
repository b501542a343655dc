"""The converter's crashes become errors."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy import converter
from tfcompress.deploy.converter import calibrate_and_convert, examples
from tfcompress.deploy.runtime import TFLiteRunner


class Doubled(layers.Layer):
    """A loop that no table of layers knows."""

    def call(self, x):
        return keras.ops.while_loop(
            lambda count, value: count < 3,
            lambda count, value: (count + 1, value * 2.0),
            (0, x),
        )[1]

    def compute_output_shape(self, shape):
        return shape


def lstm_net():
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, layers.Dense(3)(layers.LSTM(6)(inputs)))


def test_a_crash_is_an_error():
    # This does end the process, with a segmentation fault, on TensorFlow 2.21.
    model, x = lstm_net(), np.random.default_rng(0).normal(size=(8, 5, 4))
    with pytest.raises(ValueError, match=r"refuses model .*crashed \(SIG.*\) while it"):
        calibrate_and_convert(model, 1, "int8", examples(model, x))


@pytest.mark.slow
def test_a_loop_that_does_not_crash_is_converted(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(Doubled()(inputs)))
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    result = tfc.export_tflite(
        model,
        tmp_path / "m.tflite",
        kind="int8",
        calibration_data=x,
        allow_float=["WHILE"],
    )
    assert result.operators["WHILE"] == 1 and not result.fully_integer
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        TFLiteRunner(result.path).predict([x])[0], expected, atol=np.ptp(expected) / 50
    )


def test_an_error_in_the_other_process_says_why():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, Doubled()(inputs))
    wrong = [{"input_0": np.zeros((2, 6), "float64")}]
    with pytest.raises(ValueError, match="refuses model .*: ValueError: .*FLOAT64"):
        calibrate_and_convert(model, 1, "int8", wrong)


def test_only_graphs_with_a_loop_take_a_process(tmp_path):
    for model, loop in ((lstm_net(), True), (conv_net(), False)):
        converter._save(model, 1, tmp_path / model.name)
        assert converter.has_loop(tmp_path / model.name) == loop


def test_examples_are_checked_first():
    model = conv_net()
    (batch,) = examples(model, image_data(4))
    assert batch["input_0"].shape == (4, 8, 8, 3)
    with pytest.raises(ValueError, match="does not fit"):
        examples(model, np.zeros((4, 9, 8, 3)))
