"""The same file in every runtime that can run it.

Example:
    ```python
    outputs = run("TFLite Micro", path, [x])
    ```
"""

import numpy as np
import tensorflow as tf

from tfcompress.deploy.micro import run_micro
from tfcompress.deploy.runtime import TFLiteRunner, dequantize, in_batches, quantize
from tfcompress.deploy.tflite_file import read_tflite

MICRO = "TFLite Micro"

# Name -> kernels of LiteRT; `None` is another runtime.
RUNTIMES = {
    "LiteRT xnnpack": "xnnpack",
    "LiteRT builtin": "builtin",
    "LiteRT reference": "reference",
    "tf.lite": None,
    MICRO: None,
}

_TIMEOUT_SEC = 600


class RuntimeMissing(ImportError):
    """A runtime is not installed."""


class RuntimeRefusal(ValueError):
    """A runtime cannot run the file."""


def run(name, path, inputs):
    """Runs examples in a runtime.

    Args:
        name: One of `RUNTIMES`.
        path: Path of a `.tflite` file.
        inputs: List of float arrays, one for each input in order.

    Returns:
        List of float32 arrays, one for each output, and the bytes of the least
        arena of TFLite Micro (`None` of the others).

    Raises:
        RuntimeMissing: If the runtime is not installed.
        RuntimeRefusal: If it cannot run the file.
    """
    if name == MICRO:
        return _run_micro(path, inputs)
    try:
        if name == "tf.lite":
            runner = TensorFlowRunner(path)
        else:
            runner = TFLiteRunner(path, kernels=RUNTIMES[name])
        return runner.predict(inputs), None
    except (RuntimeError, ValueError) as err:
        raise RuntimeRefusal(str(err)) from err


class TensorFlowRunner(TFLiteRunner):
    """As `TFLiteRunner`, with the interpreter that TensorFlow brings along."""

    def _made(self, path, kernels, threads):
        made = tf.lite.Interpreter(model_path=str(path), num_threads=threads)
        made.allocate_tensors()
        return made


def _run_micro(path, inputs):
    runner = TFLiteRunner(path, kernels="builtin")
    file = read_tflite(path)
    takes = _places(file.inputs, runner.inputs)
    gives = _places(file.outputs, runner.outputs)
    size = int(runner.inputs[0]["shape"][0])
    batches = list(in_batches(inputs, size))
    columns = [
        np.concatenate(
            [quantize(batch[place], runner.inputs[place]) for batch in batches]
        )
        for place in np.argsort(takes)
    ]
    try:
        run = run_micro(path, columns, timeout_sec=_TIMEOUT_SEC)
    except ImportError as err:
        raise RuntimeMissing(str(err)) from err
    except ValueError as err:
        # The caller names runtime and file.
        raise RuntimeRefusal(str(err).partition(": ")[2]) from err
    outputs = [
        dequantize(run.outputs[place][: len(inputs[0])], details)
        for place, details in zip(gives, runner.outputs, strict=True)
    ]
    return outputs, run.arena_bytes


def _places(tensors, details):
    """Where in the file each tensor of the runner is."""
    indices = [t.index for t in tensors]
    return [indices.index(d["index"]) for d in details]
