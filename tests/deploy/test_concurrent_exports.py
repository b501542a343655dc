"""Two exports to one path at once: one of them wins, whole."""

import os
import subprocess
import sys
import threading

import keras
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.deploy.tflite_file import read_tflite


def net(units):
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(units)(inputs))


@pytest.mark.slow
def test_two_threads(tmp_path, capfd):
    path, errors = tmp_path / "m.tflite", []

    def export(model):
        try:
            tfc.export_tflite(model, path)
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=export, args=(net(units),)) for units in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert read_tflite(path).outputs[0].shape in ((1, 2), (1, 3))
    assert list(tmp_path.iterdir()) == [path]
    # Each thread put the error stream back that it found.
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


_EXPORT = """
import sys, keras, tfcompress as tfc
inputs = keras.Input((6,))
model = keras.Model(inputs, keras.layers.Dense(int(sys.argv[2]))(inputs))
for _ in range(5):
    tfc.export_tflite(model, sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    path = tmp_path / "m.tflite"
    running = [
        subprocess.Popen([sys.executable, "-c", _EXPORT, path, str(units)])
        for units in (2, 3)
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert read_tflite(path).outputs[0].shape in ((1, 2), (1, 3))
    assert list(tmp_path.iterdir()) == [path]
