"""The tensors of a file that stand for those of a model.

Example:
    ```python
    rows = with_file(probe.rows(inputs), probe, Recorder("model.tflite", qat), inputs)
    ```
"""

import dataclasses
import math
import os
from dataclasses import dataclass, field

import numpy as np

from tfcompress.debug.differences import add, difference
from tfcompress.deploy.litert_process import interpreter
from tfcompress.deploy.quiet import quiet
from tfcompress.deploy.runtime import TFLiteRunner, check_belongs, quantize
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.progress import tracked


class Recorder:
    """Runs a file and keeps the tensors in between.

    Args:
        path: Path of a `.tflite` file.
        model: The model that it should have been exported from.

    Attributes:
        path: The path.
        batch_size: Batch size of the file.
        tensors: The quantized tensors that it computes, as `tflite_file.Tensor`.
    """

    def __init__(self, path, model):
        self.path = os.fspath(path)
        file = read_tflite(path)
        runner = TFLiteRunner(path)
        self._inputs = runner.inputs
        check_belongs(model, runner, path)
        self.batch_size = int(runner.inputs[0]["shape"][0])
        self.tensors = [
            t
            for t in file.used_tensors()
            if not t.constant
            and t.dtype in ("INT8", "INT16")
            and t.scale is not None
            and len(t.scale) == 1
        ]
        if not self.tensors:
            raise ValueError(
                f"{self.path!r} has no integer activations to compare. Export it with "
                "tfc.export_tflite(model, path, kind='int8')."
            )
        with quiet():
            # XNNPACK computes several operations as one and keeps nothing between.
            self._interpreter = interpreter(self.path, kernels="builtin", keep=True)

    def run(self, inputs):
        """Runs a batch of the file's size; `tensor` reads what it computed."""
        for details, value in zip(self._inputs, inputs, strict=True):
            value = quantize(value, details)
            self._interpreter.set_tensor(details["index"], value)
        self._interpreter.invoke()

    def tensor(self, index):
        """The integers of a tensor after `run`."""
        return self._interpreter.get_tensor(index)


@dataclass
class Candidate:
    """A tensor of the file on the grid of a site, and what became of comparing them.

    Attributes:
        tensor: The `tflite_file.Tensor`.
        sums: `sums` of the model's integers and the file's, zero point taken off.
        total: Sum of the model's integers.
        steps: Sum of the differences.
        count: Number of values.
    """

    tensor: object
    sums: np.ndarray = field(default_factory=lambda: np.zeros(3))
    total: float = 0.0
    steps: float = 0.0
    count: int = 0

    def add(self, wanted, found):
        """Compares integers, as float64 arrays."""
        error = np.abs(wanted - found)
        new = np.array([np.square(wanted).sum(), np.square(error).sum(), error.max()])
        self.sums = add(self.sums, new)
        self.total += wanted.sum()
        self.steps += error.sum()
        self.count += error.size

    def agrees(self):
        """Whether the values may be those of the model, give or take roundings."""
        signal, noise, _ = self.sums
        # Not the signal: sigmoids are all near one half, whosever they are.
        variation = signal - self.total**2 / self.count
        return noise <= variation / 4 or self.steps <= self.count


def with_file(rows, probe, recorder, inputs):
    """The rows with what the file has for them."""
    candidates = _compare(probe, recorder, inputs)
    learned = [
        found
        for site, found in zip(probe.sites, candidates, strict=True)
        if site.quantizer.fixed_range is None
    ]
    if learned and not any(learned):
        raise ValueError(
            f"{recorder.path!r} does not belong to the model as it is now: no "
            "tensor of it has a scale that the model learned. Export the model again."
        )
    return [
        dataclasses.replace(row, **matched(site, found))
        for row, site, found in zip(rows, probe.sites, candidates, strict=True)
    ]


def _compare(probe, recorder, inputs):
    """A list of `Candidate`s for each site."""
    rounded = probe.rounded()
    arrays = [np.concatenate(column) for column in zip(*inputs, strict=True)]
    count, size = len(arrays[0]), recorder.batch_size
    candidates = None
    for start in tracked(range(0, count, size), "Running the file"):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        batch = [array[rows] for array in arrays]
        values = rounded(batch)
        if candidates is None:
            candidates = _candidates(probe.sites, values, recorder.tensors)
        recorder.run(batch)
        for site, value, found in zip(probe.sites, values, candidates, strict=True):
            scale, zero_point, _ = site.grid
            wanted = np.round(value.ravel() / scale).astype(np.float64)
            for candidate in found:
                integers = recorder.tensor(candidate.tensor.index).ravel()
                candidate.add(wanted, integers.astype(np.float64) - zero_point)
    return candidates


def _candidates(sites, values, tensors):
    """For each site the tensors of the file of its grid and shape."""
    return [
        [
            Candidate(tensor)
            for tensor in tensors
            if _on_grid(tensor, site.grid)
            and _squeezed(tensor.shape) == _squeezed(value.shape)
        ]
        for site, value in zip(sites, values, strict=True)
    ]


def _on_grid(tensor, grid):
    scale, zero_point, dtype = grid
    return (
        tensor.dtype == dtype
        and int(tensor.zero_point[0]) == zero_point
        # Scales are float32 in the file, and were on the way there.
        and math.isclose(float(tensor.scale[0]), scale, rel_tol=1e-5)
    )


def _squeezed(shape):
    return tuple(n for n in shape if n != 1)


def matched(site, candidates):
    """The fields of `LayerError` about the file, from the candidates of a site."""
    if not candidates:
        return {"file_note": "no tensor of its scale and shape"}
    best, *others = sorted(candidates, key=lambda c: c.sums[1])
    if not best.agrees():
        return {"file_note": "values differ"}
    # Tensors that only moved values about have the same sums and are as good.
    rivals = [c for c in others if not np.array_equal(c.sums, best.sums)]
    if any(c.sums[1] <= 4 * best.sums[1] for c in rivals):
        return {"file_note": f"{len(candidates)} tensors fit"}
    steps = difference(best.sums, step=1.0)
    in_units = dataclasses.replace(steps, max_error=steps.max_error * site.grid[0])
    return {"file": in_units, "file_tensor": best.tensor.name}
