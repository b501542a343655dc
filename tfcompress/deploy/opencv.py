"""Says whether OpenCV's `cv2.dnn` runs an `.onnx` file, and computes the same.

OpenCV 5 has two engines, and each fails on files that the other runs, some by ending
the process: so each is tried in a process of its own.

Example:
    ```python
    check = tfc.check_opencv("model.onnx")
    net = cv2.dnn.readNetFromONNX("model.onnx", getattr(cv2.dnn, check.engine))
    ```
"""

import math
import os
import pathlib
import tempfile
from dataclasses import dataclass

import numpy as np

from tfcompress.deploy.onnx_runtime import (
    MOST_ROUNDING,
    ONNXRunner,
    check_loads,
    relative_differences,
)
from tfcompress.deploy.programs import check_timeout, installed, run_script

# The new one first: it is OpenCV's default and takes batches.
ENGINES = ("ENGINE_NEW", "ENGINE_CLASSIC")
_CHILD = pathlib.Path(__file__).with_name("opencv_child.py")
# Of the largest output: float sums in another order.
_FLOAT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class OpenCVCheck:
    """What OpenCV makes of a file.

    Attributes:
        path: Path of the file.
        engine: Name in `cv2.dnn` of the engine that runs it: `"ENGINE_NEW"` or
            `"ENGINE_CLASSIC"`.
        batches: Whether that engine computes several examples at once as one by one.
        largest_difference: Largest difference of an output from ONNX Runtime's, as a
            share of the largest output.
        milliseconds: Median time of one inference; NaN if it was not timed.
        refusals: Dict from an engine that does not run it to the reason.
    """

    path: str
    engine: str
    batches: bool
    largest_difference: float
    milliseconds: float
    refusals: dict

    def __str__(self):
        times = "" if math.isnan(self.milliseconds) else f", {self.milliseconds:.3f} ms"
        batches = (
            "several examples at once" if self.batches else "one example at a time"
        )
        lines = [
            f"{self.path} runs in OpenCV's {self.engine}, {batches}{times}",
            f"largest difference from ONNX Runtime: {self.largest_difference:.2g} of "
            "the largest output",
            *(f"{engine} refuses it: {why}" for engine, why in self.refusals.items()),
        ]
        return "\n".join(lines)


def check_opencv(path, inputs=None, *, threads=1, repeats=0, timeout_sec=120):
    """Runs an `.onnx` file in OpenCV and compares the outputs with ONNX Runtime's.

    Args:
        path: Path of an `.onnx` file.
        inputs: List of arrays, one an input in order, with one row an example: as many
            as the file takes at once, if it says, or else any number, which are run one
            by one. `None` for random values.
        threads: OpenCV's number of threads.
        repeats: How many inferences are timed.
        timeout_sec: Seconds after which an engine is given up.

    Returns:
        An `OpenCVCheck` of the first engine that computes what ONNX Runtime does.

    Raises:
        ImportError: If OpenCV is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If no engine runs the file, or none computes the same; names the
            reasons.
    """
    check_timeout(timeout_sec)
    check_loads(path, timeout_sec)
    runner = ONNXRunner(path)
    if not installed("cv2"):
        raise ImportError(
            "OpenCV is not installed: pip install 'tfcompress[opencv]' (the package "
            "opencv-python-headless)."
        )
    inputs = runner.examples(4) if inputs is None else inputs
    rows = 1 if _open_batch(runner) else len(inputs[0])
    refusals = {}
    for engine in ENGINES:
        try:
            settings = [engine, rows, threads, repeats]
            found, milliseconds = _run(path, runner, inputs, settings, timeout_sec)
            difference = _checked_difference(runner, inputs, found)
        except ValueError as err:
            refusals[engine] = str(err)
            continue
        return OpenCVCheck(
            path=os.fspath(path),
            engine=engine,
            batches=_takes_batches(path, runner, inputs, engine, timeout_sec),
            largest_difference=difference,
            milliseconds=milliseconds,
            refusals=refusals,
        )
    reasons = "; ".join(f"{engine}: {why}" for engine, why in refusals.items())
    raise ValueError(
        f"OpenCV does not run {os.fspath(path)!r} as ONNX Runtime does. {reasons}. Run "
        "the file in ONNX Runtime, or the float one in OpenCV."
    )


def _open_batch(runner):
    return all(not isinstance(t.shape[0], int) for t in runner.inputs if t.shape)


def _run(path, runner, inputs, settings, timeout_sec):
    """Outputs of an engine, and the median time of an inference."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder).resolve()
        # Names apart from the arrays: `savez` has parameters of its own, as `file`.
        pairs = list(zip(runner.inputs, inputs, strict=True))
        arrays = {f"input_{i}": array for i, (_, array) in enumerate(pairs)}
        names = np.array([tensor.name for tensor, _ in pairs])
        np.savez(folder / "inputs.npz", names=names, **arrays)
        arguments = [os.path.abspath(path), *map(str, settings)]
        done = run_script(_CHILD, arguments, folder, timeout_sec)
        trouble = done.trouble(timeout_sec)
        if trouble:
            raise ValueError(trouble)
        with np.load(folder / "outputs.npz") as arrays:
            found = dict(arrays)
    milliseconds = float(found.pop("milliseconds"))
    return [found[f"output_{i}"] for i in range(len(found))], milliseconds


def _checked_difference(runner, inputs, found):
    """Largest difference as a share of the largest output, if it is rounding."""
    expected = runner.predict(inputs)
    if [a.size for a in found] != [a.size for a in expected]:
        raise ValueError(
            f"outputs of shapes {[a.shape for a in found]}, not "
            f"{[a.shape for a in expected]}"
        )
    largest, squares = relative_differences(found, expected)
    difference, limit, of = largest, _FLOAT_TOLERANCE, "the largest"
    if runner.quantized:
        difference, limit = squares, MOST_ROUNDING
        of = "the outputs, as a root mean square"
    # So that a NaN fails too.
    if not difference <= limit:
        raise ValueError(
            f"outputs differ by {difference:.2g} of {of} (at most {limit:.2g} is "
            "rounding)"
        )
    return largest


def _takes_batches(path, runner, inputs, engine, timeout_sec):
    rows = len(inputs[0])
    if rows == 1:
        return False
    try:
        found, _ = _run(path, runner, inputs, [engine, rows, 1, 0], timeout_sec)
        _checked_difference(runner, inputs, found)
    except ValueError:
        return False
    return True
