"""Runs a `.tflite` file on the CPU, float in and float out, whatever its types.

Example:
    ```python
    runner = TFLiteRunner("model.tflite")
    probabilities = runner.predict([x])[0]
    milliseconds = latency_ms("model.tflite")
    ```
"""

import contextlib
import os
import statistics

import numpy as np

from tfcompress.deploy.apart import FileCrashError, FileRunError, ask, check_runs
from tfcompress.deploy.litert_process import interpreter
from tfcompress.deploy.quiet import quiet
from tfcompress.deploy.signatures import in_order


class TFLiteRunner:
    """A loaded file with its interpreter.

    Args:
        path: Path of a `.tflite` file.
        threads: Number of threads.
        kernels: `"xnnpack"`, `"builtin"` or `"reference"`; see `litert_process`.

    Attributes:
        inputs: Details of the inputs as the interpreter gives them, in order.
        outputs: The same of the outputs.
        signatures: Names of the file's signatures.

    Raises:
        ValueError: If the runtime cannot load the file (for example custom operations),
            or running it ends the process.
    """

    def __init__(self, path, *, threads=1, kernels="xnnpack"):
        self._path = os.fspath(path)
        with self._failures(), quiet():
            check_runs(path, kernels=kernels)
            self._interpreter = self._made(path, kernels, threads)
            self.signatures = tuple(self._interpreter.get_signature_list())
            self.inputs, self.outputs = self._details()
            if not self.inputs or not len(self.inputs[0]["shape"]):
                raise ValueError("its first input has no batch axis")

    @contextlib.contextmanager
    def _failures(self):
        try:
            yield
        except FileCrashError:
            raise
        except (ValueError, RuntimeError) as err:
            raise ValueError(
                f"LiteRT cannot run {self._path!r} on the CPU: {err}"
            ) from err

    def _made(self, path, kernels, threads):
        return interpreter(path, kernels=kernels, threads=threads)

    def _details(self):
        """Inputs and outputs in the order of the signature, where there is just one.

        Other converters order and name the tensors of a file as they like.
        """
        if len(self.signatures) != 1:
            found = self._interpreter
            return found.get_input_details(), found.get_output_details()
        signature = self._interpreter.get_signature_runner()
        return tuple(
            [found for _, found in in_order(details, tensors)]
            for details, tensors in (
                (signature.get_input_details(), self._interpreter.get_input_details()),
                (
                    signature.get_output_details(),
                    self._interpreter.get_output_details(),
                ),
            )
        )

    def predict(self, inputs):
        """Runs examples in the batch size of the file.

        Args:
            inputs: List of float arrays, one for each input in order, with one row an
                example.

        Returns:
            List of float32 arrays, one for each output, with one row an example.
        """
        return self._run_all(inputs, real=True)

    def integers(self, inputs):
        """As `predict`, with the outputs as the file stores them."""
        return self._run_all(inputs, real=False)

    def _run_all(self, inputs, real):
        """Runs as many examples at a time as the file takes; fills up the last."""
        count, size = len(inputs[0]), int(self.inputs[0]["shape"][0])
        parts = [self._run(batch, real) for batch in in_batches(inputs, size)]
        return [np.concatenate(c)[:count] for c in zip(*parts, strict=True)]

    def _run(self, example, real):
        with self._failures():
            return self._run_once(example, real)

    def _run_once(self, example, real):
        for details, value in zip(self.inputs, example, strict=True):
            self._interpreter.set_tensor(details["index"], quantize(value, details))
        self._interpreter.invoke()
        found = [
            (self._interpreter.get_tensor(details["index"]), details)
            for details in self.outputs
        ]
        return [dequantize(v, d) if real else v for v, d in found]


def latency_ms(path, *, repeats=100, seconds=1.0):
    """Median time of one inference on one thread in milliseconds, after a warm-up.

    The file runs in a process of its own.

    Args:
        path: Path of a `.tflite` file.
        repeats: Least number of timed runs.
        seconds: Time after which no more than `repeats` are made.

    Raises:
        ValueError: If the runtime cannot run the file.
    """
    try:
        (times,) = ask(
            "turns",
            path,
            timeout_sec=120 + 20 * seconds,
            settings=[("xnnpack", 1)],
            rounds=1,
            repeats=repeats,
            seconds=seconds,
            warmup=5,
        )
    except FileRunError as err:
        raise ValueError(f"LiteRT cannot run the file on the CPU: {err}") from err
    return 1000 * statistics.median(times)


def in_batches(inputs, size):
    """Examples in batches of `size`, the last filled up with its last example."""
    count = len(inputs[0])
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield [array[rows] for array in inputs]


def quantize(value, details):
    """Real values as the integers of a quantized tensor; float tensors as they are."""
    dtype = details["dtype"]
    scale, zero_point = details["quantization"]
    if scale == 0 or not np.issubdtype(dtype, np.integer):
        return np.asarray(value, dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(value / scale) + zero_point, limits.min, limits.max).astype(
        dtype
    )


def dequantize(value, details):
    """Stored values of a tensor as real ones, float32."""
    scale, zero_point = details["quantization"]
    if scale == 0:
        return np.asarray(value, np.float32)
    return (value.astype(np.float32) - zero_point) * np.float32(scale)


def check_belongs(model, runner, path):
    """Raises unless a file has the inputs and outputs of a model.

    Args:
        model: The `keras.Model` that it should have been exported from.
        runner: `TFLiteRunner` of the file.
        path: Its path, for the message.

    Raises:
        ValueError: If it has not, or has several signatures.
    """
    signatures = list(runner.signatures)
    if len(signatures) > 1:
        raise ValueError(
            f"{os.fspath(path)!r} has {len(signatures)} signatures, {signatures}, each "
            "with operations of its own: a model is compared with a file of one. "
            "Export the model by itself."
        )
    for kind, expected, found in (
        ("input", model.inputs, runner.inputs),
        ("output", model.outputs, runner.outputs),
    ):
        wanted = [tuple(t.shape[1:]) for t in expected]
        received = [tuple(int(n) for n in d["shape"][1:]) for d in found]
        if not _same_shapes(wanted, received):
            raise ValueError(
                f"{os.fspath(path)!r} does not belong to model {model.name!r}: "
                f"expected {kind}s of shape {wanted} (without the batch axis). "
                f"Received: {received}. Export the model again."
            )


def _same_shapes(wanted, received):
    return len(wanted) == len(received) and all(
        len(w) == len(r) and all(a in (None, b) for a, b in zip(w, r, strict=True))
        for w, r in zip(wanted, received, strict=True)
    )
