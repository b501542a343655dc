"""Every operation of a file on equal inputs in several kernel sets, and beside Keras.

Example:
    ```python
    rows = compare_operations(model, path, inputs)
    ```
"""

import dataclasses
import math
import pathlib
from dataclasses import dataclass

import keras
import numpy as np

from tfcompress.debug import debug_quantization
from tfcompress.debug.differences import Difference, add, difference, sums
from tfcompress.deploy.apart import FileCrashError, FileRunError, Process
from tfcompress.deploy.one_operation import alone, computed_inputs
from tfcompress.deploy.runtime import TFLiteRunner, in_batches, quantize
from tfcompress.deploy.tflite_file import damage_named, parsed, read_tflite
from tfcompress.graph import Graph, flatten, functional
from tfcompress.passes.export_graph import is_quantization_aware
from tfcompress.passes.strip import strip

_TIMEOUT_SEC = 600

# A tensor is that of a layer if what differs is at most this share of its variance.
_MOST_NOISE = 0.1


@dataclass(frozen=True)
class OperationAgreement:
    """One operation of the file.

    Attributes:
        index: Position in the file.
        operator: TFLite's name.
        xnnpack: Largest difference between XNNPACK and TFLite's builtin kernels on
            equal inputs: in steps of the output's grid where it is quantized, else as a
            share of its largest value. `None` where it cannot run alone.
        reference: The same of TFLite's reference kernels.
        quantized: Whether the two are in steps.
        layer: Name of the Keras layer whose output it computes; empty if none was
            found, as inside a layer or where converters compute another way.
        keras: `Difference` of that layer and the operation in the file, errors of
            what comes before included; `None` without a layer.
    """

    index: int
    operator: str
    xnnpack: float | None
    reference: float | None
    quantized: bool
    layer: str = ""
    keras: Difference | None = None


def compare_operations(model, path, inputs):
    """Compares the kernels of each operation, and its output with that of a layer.

    Args:
        model: The Keras model the file was exported from.
        path: Path of the file.
        inputs: List of float arrays, one for each input in order.

    Returns:
        Tuple of `OperationAgreement`.

    Raises:
        ValueError: If the runtime fails.
    """
    file = read_tflite(path)
    by_debug = is_quantization_aware(model) and any(
        t.dtype in ("INT8", "INT16") and not t.constant for t in file.used_tensors()
    )
    layers = not by_debug and functional(model) is not None
    errors, largest, kept = _run(file, path, inputs, keep=layers)
    rows = [
        _row(operation, *found)
        for operation, *found in zip(file.operations, errors, largest, strict=True)
    ]
    if by_debug:
        return tuple(_with_debug(rows, file, model, path, inputs))
    return tuple(_with_layers(rows, file, model, inputs, kept) if layers else rows)


def _run(file, path, inputs, keep):
    runner = TFLiteRunner(path, kernels="builtin")
    order = {d["index"]: place for place, d in enumerate(runner.inputs)}
    size = int(runner.inputs[0]["shape"][0])
    examples = [
        [
            quantize(batch[order[t.index]], runner.inputs[order[t.index]])
            for t in file.inputs
        ]
        for batch in in_batches(inputs, size)
    ]
    model = parsed(pathlib.Path(path).read_bytes())
    with damage_named(path):
        parts = [
            (alone(model, i), computed_inputs(model, i), _indices(op.outputs))
            for i, op in enumerate(file.operations)
        ]
    with Process() as process:
        try:
            return process.ask(
                "operations",
                path,
                timeout_sec=_TIMEOUT_SEC,
                parts=parts,
                examples=examples,
                keep=keep,
            )
        except (FileCrashError, FileRunError) as err:
            raise ValueError(f"Cannot compare operations: {err}") from err


def _indices(tensors):
    return [t.index for t in tensors]


def _row(operation, errors, largest):
    scales = [t.scale for t in operation.outputs]
    quantized = all(scale is not None for scale in scales) and bool(scales)
    unit = 1.0 if quantized else max(largest, np.finfo(np.float32).tiny)
    found = {
        kernels: None if error is None else error / unit
        for kernels, error in errors.items()
    }
    return OperationAgreement(
        operation.index,
        operation.operator,
        found.get("xnnpack"),
        found.get("reference"),
        quantized,
    )


def _with_debug(rows, file, model, path, inputs):
    """Layers of a quantization-aware model, found by the grids that it learned."""
    examples = len(inputs[0])
    data = inputs if len(inputs) > 1 else inputs[0]
    debug = debug_quantization(model, path, data, examples=examples)
    by_tensor = {row.file_tensor: row for row in debug.layers if row.file is not None}
    for row in rows:
        names = [t.name for t in file.operations[row.index].outputs]
        found = next((by_tensor[name] for name in names if name in by_tensor), None)
        if found is not None:
            row = dataclasses.replace(row, layer=found.name, keras=found.file)
        yield row


def _with_layers(rows, file, model, inputs, kept):
    """Layers of a plain model, found by what they compute."""
    names, values = _layer_outputs(model, inputs)
    for row in rows:
        operation = file.operations[row.index]
        if len(operation.outputs) == 1:
            written = [example[row.index][0] for example in kept]
            if written[0].ndim:
                found = _real(np.concatenate(written), operation.outputs[0])
                row = _matched(row, operation.outputs[0], found, names, values)
        yield row


def _layer_outputs(model, inputs):
    """Names and values of all tensors that a model computes."""
    flat = flatten(strip(model), keep_subclassed=True)
    calls = [(c.operation.name, t) for c in Graph(flat).calls for t in c.outputs]
    infer = keras.Model(flat.inputs, [tensor for _, tensor in calls])
    found = keras.tree.flatten(infer(inputs, training=False))
    return [name for name, _ in calls], [np.asarray(v, np.float32) for v in found]


def _real(values, tensor):
    if tensor.scale is None or len(tensor.scale) != 1:
        return values.astype(np.float32)
    shifted = values.astype(np.float32) - np.float32(tensor.zero_point[0])
    return shifted * np.float32(tensor.scale[0])


def _matched(row, tensor, found, names, values):
    step = float(tensor.scale[0]) if tensor.scale is not None else math.nan
    best = None
    for name, value in zip(names, values, strict=True):
        if not value.ndim or found.size < value.size or _sizes(found) != _sizes(value):
            continue
        # The last batch of the file may be filled up.
        same = found.reshape(-1, *value.shape[1:])[: len(value)]
        totals = np.asarray(sums(value, same), np.float64)
        if best is None or totals[1] < best[1][1]:
            best = name, totals, float(np.var(value)) * value.size
    if best is None or best[1][1] > _MOST_NOISE * best[2]:
        return row
    totals = add(np.zeros(3), best[1])
    return dataclasses.replace(row, layer=best[0], keras=difference(totals, step))


def _sizes(array):
    """Shape of an example without axes of length one."""
    return tuple(n for n in array.shape[1:] if n != 1)
