"""Runs an `.onnx` file in ONNX Runtime on the CPU.

Example:
    ```python
    runner = ONNXRunner("model.onnx")
    probabilities = runner.predict([x])[0]
    milliseconds = runner.latency_ms()
    ```
"""

import os
import pathlib
import statistics
import tempfile
import time

import numpy as np

from tfcompress.deploy.programs import installed, run_script
from tfcompress.deploy.quiet import quiet

# What rounding may make of a file of integers that another set of kernels runs, as the
# `relative_differences` of squares: 12 dB, as for `tfc.verify`. A step that falls the
# other way in each layer grows on its way through a deep network; what is wrong is off
# by the size of the output.
MOST_ROUNDING = 0.25

_WARM_UP = 5
_CHILD = pathlib.Path(__file__).with_name("onnx_child.py")

# Memory to load a file in, beside the file itself, and how often that may be there.
_MEMORY_BYTES, _COPIES = 3 * 2**30, 8


def check_loads(path, timeout_sec):
    """Loads a file of whatever origin in a process of its own first.

    Args:
        path: Path of an `.onnx` file.
        timeout_sec: Seconds after which it is given up.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ONNX Runtime refuses the file, or loading it ended its process or
            took more time or memory than a file of that size has need of.
    """
    name = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No such .onnx file: {name!r}")
    if not installed("onnxruntime"):
        raise ImportError("ONNX Runtime is not installed: pip install onnxruntime")
    # Large weights lie in files beside it, of any names.
    weights = pathlib.Path(os.path.abspath(path)).parent.glob("*.data")
    sizes = [os.path.getsize(p) for p in (path, *weights)]
    memory = _MEMORY_BYTES + _COPIES * sum(sizes)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [os.path.abspath(path), str(memory)]
        done = run_script(_CHILD, arguments, pathlib.Path(folder), timeout_sec)
    trouble = done.trouble(timeout_sec)
    # Zeros, by which a file may divide, are no input that it takes.
    if trouble and done.crash != "SIGFPE":
        raise ValueError(f"ONNX Runtime cannot load {name!r}: {trouble}")


class ONNXRunner:
    """A loaded file with its session.

    Args:
        path: Path of an `.onnx` file.
        threads: Number of threads.
        fused: Whether the runtime may compute several operations by kernels of its own;
            else each as the file says.

    Attributes:
        inputs: The session's inputs, with `name`, `shape` and `type`.
        outputs: The same of its outputs.
        quantized: Whether the file holds integers between QuantizeLinear operations.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the runtime cannot load the file.
    """

    def __init__(self, path, *, threads=1, fused=True):
        import onnxruntime

        if not os.path.isfile(path):
            raise FileNotFoundError(f"No such .onnx file: {os.fspath(path)!r}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # Errors are raised; not logged too.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if not fused:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        with quiet():
            try:
                # Without a second try with the same provider, which it announces.
                self._session = onnxruntime.InferenceSession(
                    os.fspath(path),
                    options,
                    providers=["CPUExecutionProvider"],
                    enable_fallback=0,
                )
            except Exception as err:
                raise ValueError(
                    f"ONNX Runtime cannot load {os.fspath(path)!r}: {err}"
                ) from err
        self.path = os.fspath(path)
        self.quantized = b"QuantizeLinear" in pathlib.Path(path).read_bytes()
        self.inputs = self._session.get_inputs()
        self.outputs = self._session.get_outputs()

    def predict(self, inputs):
        """Runs a batch of examples.

        Args:
            inputs: List of arrays, one for each input in order, with one row an
                example; as many as the file takes, if its batch size is fixed.

        Returns:
            List of arrays, one for each output.

        Raises:
            ValueError: If the runtime cannot run the file on them.
        """
        feeds = {i.name: a for i, a in zip(self.inputs, inputs, strict=True)}
        try:
            return self._session.run(None, feeds)
        except Exception as err:
            raise ValueError(f"ONNX Runtime cannot run {self.path!r}: {err}") from err

    def examples(self, count=1, *, seed=0):
        """Random inputs that fit the file, `count` rows where its batch is open."""
        rng = np.random.default_rng(seed)
        return [_random(tensor, count, rng) for tensor in self.inputs]

    def latency_ms(self, *, repeats=100, seconds=1.0):
        """Median time of one inference in milliseconds, after a warm-up.

        Args:
            repeats: Least number of timed runs.
            seconds: Time after which no more than `repeats` are made.
        """
        inputs = self.examples()
        for _ in range(_WARM_UP):
            self.predict(inputs)
        times, begin = [], time.perf_counter()
        while len(times) < repeats or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            self.predict(inputs)
            times.append(time.perf_counter() - start)
        return 1000 * statistics.median(times)


def _random(tensor, count, rng):
    shape = [size if isinstance(size, int) else None for size in tensor.shape]
    shape = [count, *shape[1:]] if shape and shape[0] is None else shape
    if None in shape:
        raise ValueError(
            f"Input {tensor.name!r} has an open dimension beside the batch: "
            f"{tensor.shape}. Pass inputs of your own."
        )
    if tensor.type == "tensor(float)":
        return rng.normal(size=shape).astype(np.float32)
    # Indices: 0 and 1 are valid ones of any table that is worth one.
    return rng.integers(0, 2, shape).astype(_NUMPY.get(tensor.type, np.int64))


_NUMPY = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(bool)": bool}


def relative_differences(found, expected):
    """How far outputs are from others: `(largest, root mean square)`, as shares.

    Args:
        found: List of arrays.
        expected: List of arrays of the same sizes.

    Returns:
        The largest difference as a share of the largest value, and the root mean square
        of the differences as a share of that of the values; of the worst output.
    """
    pairs = [
        (np.abs(f.reshape(e.shape) - e), np.abs(e))
        for f, e in zip(found, expected, strict=True)
    ]
    return tuple(
        float(np.max([of(off) / max(of(size), 1e-9) for off, size in pairs]))
        for of in (np.max, _root_mean_square)
    )


def _root_mean_square(values):
    return np.sqrt(np.mean(np.square(values, dtype="float64")))
