"""Trains techniques on two devices: `python two_devices.py FOLDER TECHNIQUE ...`.

Prints a line of JSON. The test that runs it is in `test_techniques.py`.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = [str(pathlib.Path(__file__).parents[i]) for i in (1, 2)]

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

from contracts.techniques import TECHNIQUES, check_callbacks  # noqa: E402
from networks import compiled, conv_net, image_data  # noqa: E402

import tfcompress as tfc  # noqa: E402


def run(technique, folder, strategy):
    """Trains, saves, loads and exports; returns what came of it."""
    x, y = image_data()
    wrap, callbacks = TECHNIQUES[technique]
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = compiled(wrap(conv_net()))
    callbacks = callbacks()
    history = model.fit(
        x, y, batch_size=32, epochs=6, verbose=0, callbacks=callbacks
    ).history
    check_callbacks(callbacks, history)
    expected = model.predict(x, verbose=0)
    model.save(folder / "model.keras")
    loaded = keras.models.load_model(folder / "model.keras", safe_mode=True)
    plain = not tfc.passes.export_graph.is_quantization_aware(loaded)
    path = folder / "model.tflite"
    result = tfc.export_tflite(
        loaded, path, kind="int8", calibration_data=x[:32] if plain else None
    )
    return {
        "same_weights": all(
            np.array_equal(one.numpy(), other.numpy())
            for one, other in zip(model.weights, loaded.weights, strict=True)
        ),
        "difference": float(np.abs(loaded.predict(x, verbose=0) - expected).max()),
        "accuracy": float(np.mean(expected.argmax(1) == y)),
        "file_accuracy": tfc.measure(path, data=(x, y)).accuracy,
        "fully_integer": result.fully_integer,
    }


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    # One for all: strategies number what they exchange each from the start.
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    print(json.dumps({name: run(name, folder, strategy) for name in sys.argv[2:]}))
