"""Files of one small network in several forms, written once for many tests."""

import atexit
import functools
import pathlib
import tempfile

import keras
import numpy as np
from keras import layers

import tfcompress as tfc


def examples(count=32, *, seed=0):
    """Images around the range that the network was calibrated on."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 8, 8, 3)).astype("float32")


@functools.cache
def model():
    """Convolution, pooling and a softmax over three classes."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(3, activation="softmax", name="classifier")(x)
    return keras.Model(inputs, outputs, name="small")


@functools.cache
def small_files():
    """Folder with float.tflite, int8.tflite, uint8.tflite and float_io.tflite."""
    holder = tempfile.TemporaryDirectory()
    atexit.register(holder.cleanup)
    folder = pathlib.Path(holder.name)
    data = examples()
    tfc.export_tflite(model(), folder / "float.tflite")
    for name, io in (("int8", "int8"), ("uint8", "uint8"), ("float_io", "float32")):
        tfc.export_tflite(
            model(),
            folder / f"{name}.tflite",
            kind="int8",
            io=io,
            calibration_data=data,
        )
    return folder


def copy_of(name, folder):
    """A copy of a file in a folder of the test's own."""
    path = pathlib.Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((small_files() / name).read_bytes())
    return path
