"""An export says nothing but what its caller should read."""

import logging

import keras

import tfcompress as tfc


def test_an_export_logs_nothing_of_tensorflow(tensorflow_log, tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    level = logging.getLogger("tensorflow").level
    tfc.export_tflite(model, tmp_path / "model.tflite", kind="float32")
    assert tensorflow_log == []
    assert logging.getLogger("tensorflow").level == level
