"""Teachers that come as a file: `.tflite`, SavedModel, `.keras`.

Example:
    ```python
    teacher = as_teacher("big.tflite")
    probabilities = teacher(x)
    ```
"""

import os
import pathlib
import threading

import keras
import numpy as np
import tensorflow as tf

from tfcompress.checks import check_model
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.passes.distillation.outputs import Output


def as_teacher(teacher):
    """A teacher that a distiller can call.

    Args:
        teacher: `keras.Model`, or the path of a `.tflite` file, a `.keras` file or a
            SavedModel folder.

    Returns:
        `keras.Model`, or a layer that stands for one.

    Raises:
        TypeError: If it is none of these.
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the file cannot be read as what it says it is.
    """
    if isinstance(teacher, (TFLiteTeacher, keras.layers.TFSMLayer)):
        return teacher
    if not isinstance(teacher, (str, os.PathLike)):
        check_model(teacher, argument="teacher")
        return teacher
    path = pathlib.Path(teacher)
    if not path.exists():
        raise FileNotFoundError(
            f"`teacher`: there is nothing at {os.fspath(path)!r}. Pass a Keras 3 "
            "model, or the path of a .tflite file, a .keras file or a SavedModel."
        )
    if path.suffix == ".tflite":
        return TFLiteTeacher(path)
    if path.suffix == ".keras":
        return keras.models.load_model(path, compile=False)
    if (path / "saved_model.pb").is_file():
        return saved_model_teacher(path)
    raise ValueError(
        "`teacher` must be the path of a .tflite file, a .keras file or a SavedModel "
        f"folder. Received: {os.fspath(path)!r}"
    )


def saved_model_teacher(path):
    """A SavedModel as a layer, by the endpoint that `model.export` writes."""
    endpoints = tf.saved_model.load(os.fspath(path))
    for endpoint in ("serve", "serving_default"):
        if hasattr(endpoints, endpoint) or endpoint in endpoints.signatures:
            return keras.layers.TFSMLayer(os.fspath(path), call_endpoint=endpoint)
    raise ValueError(
        f"The SavedModel {os.fspath(path)!r} has neither of the endpoints 'serve' and "
        f"'serving_default'. It has {list(endpoints.signatures)}. Pass "
        "keras.layers.TFSMLayer(path, call_endpoint=...) as the teacher."
    )


@keras.saving.register_keras_serializable(package="tfcompress")
class TFLiteTeacher(keras.layers.Layer):
    """A `.tflite` file as a layer for inference, quantized ones in real numbers.

    It runs in LiteRT on the CPU, outside of TensorFlow's graph, so without XLA. A
    distiller that is saved keeps the path, not the file.

    Args:
        file: Path of the file.
        name: Name of the layer.
    """

    def __init__(self, file, name=None):
        super().__init__(name=name or "tflite_teacher", dtype="float32")
        self.file = os.fspath(file)
        self.supports_jit = False
        self.trainable = False
        self._runner = TFLiteRunner(self.file)
        # Replicas of a strategy ask at the same time.
        self._turn = threading.Lock()
        self.built = True

    def call(self, inputs, training=False):
        flat = keras.tree.flatten(inputs)
        details = self._runner.outputs
        if len(flat) != len(self._runner.inputs):
            raise ValueError(
                f"{self.file!r} has {len(self._runner.inputs)} inputs. Received: "
                f"{len(flat)}"
            )
        flat = [tf.cast(x, tf.float32) for x in flat]
        outputs = tf.numpy_function(
            self._run, flat, [tf.float32] * len(details), stateful=False
        )
        if not isinstance(outputs, (list, tuple)):  # Eagerly one comes by itself.
            outputs = [outputs]
        for output, detail in zip(outputs, details, strict=True):
            output.set_shape((flat[0].shape[0], *detail["shape"][1:]))
        return outputs[0] if len(outputs) == 1 else list(outputs)

    def _run(self, *inputs):
        with self._turn:
            found = self._runner.predict([np.asarray(x) for x in inputs])
        return [x.astype("float32") for x in found]

    def fingerprint_content(self):
        """The bytes of the file."""
        return pathlib.Path(self.file).read_bytes()

    def outputs_described(self):
        """Outputs as the file shows them: whether of a softmax it does not say."""
        return [
            Output(str(i), None, "a tensor of a .tflite file", (None, *d["shape"][1:]))
            for i, d in enumerate(self._runner.outputs)
        ]

    def layers_described(self):
        """None: what is inside a file cannot be read."""
        return {}

    def get_config(self):
        return {"name": self.name, "file": self.file}
