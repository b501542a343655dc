"""The same file in every runtime that can run it.

Example:
    ```python
    outputs = run("TFLite Micro", path, [x])
    ```
"""

import importlib.util
import re

import numpy as np
import tensorflow as tf

from tfcompress.deploy.apart import FileCrashError, FileRunError, Process
from tfcompress.deploy.runtime import TFLiteRunner, dequantize, quantize
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

# An arena that is surely large enough: what of it is used is what counts.
_ARENA_BYTES, _ARENA_COPIES = 64 * 2**20, 16

_USED = re.compile(r"Arena allocation total (\d+) bytes")
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
        List of float32 arrays, one for each output, and the bytes of the arena that
        TFLite Micro used (`None` of the others).

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
    if importlib.util.find_spec("tflite_micro") is None:
        raise RuntimeMissing(
            "TFLite Micro is not installed: pip install 'tfcompress[micro]'."
        )
    runner = TFLiteRunner(path, kernels="builtin")
    file = read_tflite(path)
    places = [
        _places(file.inputs, runner.inputs),
        _places(file.outputs, runner.outputs),
    ]
    examples = [
        [
            quantize(batch[place], runner.inputs[place])
            for place in np.argsort(places[0])
        ]
        for batch in in_batches(inputs, int(runner.inputs[0]["shape"][0]))
    ]
    with Process() as process:
        try:
            found = process.ask(
                "micro",
                path,
                timeout_sec=_TIMEOUT_SEC,
                examples=examples,
                outputs=len(runner.outputs),
                arena_bytes=_ARENA_BYTES + _ARENA_COPIES * file.bytes,
            )
        except (FileCrashError, FileRunError) as err:
            said = [line for line in process.said.splitlines() if line.strip()]
            raise RuntimeRefusal(said[0].strip() if said else str(err)) from err
        used = _USED.search(process.said)
    outputs = [
        np.concatenate([example[place] for example in found])[: len(inputs[0])]
        for place in places[1]
    ]
    outputs = [
        dequantize(values, details)
        for values, details in zip(outputs, runner.outputs, strict=True)
    ]
    return outputs, int(used[1]) if used else None


def _places(tensors, details):
    """Where in the file each tensor of the runner is."""
    indices = [t.index for t in tensors]
    return [indices.index(d["index"]) for d in details]


def in_batches(inputs, size):
    """Examples in batches of `size`, the last filled up with its last example."""
    count = len(inputs[0])
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield [array[rows] for array in inputs]
