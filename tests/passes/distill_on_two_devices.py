"""One step of distillation on one device and on two: prints a line of JSON.

The test that runs it is in `tests/test_distill_teachers.py`.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = [str(pathlib.Path(__file__).parents[2])]

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers  # noqa: E402

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

import tfcompress as tfc  # noqa: E402


def _model(width):
    inputs = keras.Input((8,))
    x = layers.Dense(
        width, "relu", kernel_regularizer=keras.regularizers.L2(0.1), name="hidden"
    )(inputs)
    return keras.Model(inputs, layers.Dense(3)(x))


def run(strategy):
    """Returns the weights before and after a step, and the logs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8)).astype("float32")
    y, weight = rng.integers(0, 3, 32), rng.uniform(0.0, 2.0, 32)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        terms = [
            tfc.distillation.SoftLabels(2.0),
            tfc.distillation.Hint("hidden", "hidden", weight=0.5),
        ]
        pupil = tfc.distill(_model(4), _model(6), terms=terms, alpha=0.3)
        pupil.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    before = [v.numpy() for v in pupil.trainable_variables]
    logs = pupil.fit(
        x, y, sample_weight=weight, batch_size=32, shuffle=False, verbose=0
    )
    after = [v.numpy() for v in pupil.trainable_variables]
    return before, after, logs.history


if __name__ == "__main__":
    one = run(tf.distribute.OneDeviceStrategy("CPU:0"))
    two = run(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))

    def distance(a, b):
        """Largest difference of two lists of arrays."""
        return max(float(np.abs(p - q).max()) for p, q in zip(a, b, strict=True))

    print(
        json.dumps(
            {
                "moved": distance(one[0], one[1]),
                "difference": distance(one[1], two[1]),
                "losses": [one[2]["loss"][0], two[2]["loss"][0]],
                "taught": [r[2]["distillation_loss"][0] for r in (one, two)],
            }
        )
    )
