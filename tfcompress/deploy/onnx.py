"""Export to ONNX, checked with the ONNX checker and run against the Keras model.

Example:
    ```python
    result = tfc.export_onnx(qat, "model.onnx")
    print(result.operators, result.largest_difference)
    ```
"""

import collections
import logging as python_logging
import os
import pathlib
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf

from tfcompress.checks import check_batch_size, check_model
from tfcompress.deploy.files import check_writable, gzip_bytes, written_atomically
from tfcompress.deploy.integers import check_weights
from tfcompress.deploy.onnx_graph import drop_absorbed_relus, store_integer_weights
from tfcompress.deploy.onnx_operations import handlers
from tfcompress.deploy.onnx_runtime import (
    MOST_ROUNDING,
    ONNXRunner,
    relative_differences,
)
from tfcompress.deploy.quiet import quiet
from tfcompress.graph import (
    Graph,
    check_scopes,
    find_layers,
    flat_call,
    functional,
    symbolic_inputs,
)
from tfcompress.layers import ConstantFakeQuant, FakeQuant
from tfcompress.passes.distill import Distiller
from tfcompress.passes.export_graph import (
    export_graph_and_weights,
    is_quantization_aware,
)
from tfcompress.passes.plain_graph import plain_graph

_CHECKED_EXAMPLES = 8
_OPSETS = range(13, 19)
# Of the largest output: float sums in another order.
_FLOAT_TOLERANCE = 1e-3
# Of the outputs' root mean square, where each operation is computed as the file says
# and only float sums have another order (see also `MOST_ROUNDING`).
_INTEGER_TOLERANCE = 0.1
# And of the largest output there: a border that is computed otherwise is few values.
_LARGEST_TOLERANCE = 0.5


@dataclass(frozen=True)
class ONNXExport:
    """What `export_onnx` wrote.

    Attributes:
        path: Path of the file.
        bytes: Its size.
        gzip_bytes: Its size after gzip -9.
        opset: Version of the operator set.
        operators: Dict from ONNX operator to how often it occurs.
        integer_weights: Number of weights stored as int8, with the scale or the scales
            per channel that they were trained with.
        largest_difference: Largest difference of an output from the Keras model's, on
            random inputs in ONNX Runtime with its own kernels, as a share of the
            largest output.
    """

    path: str
    bytes: int
    gzip_bytes: int
    opset: int
    operators: dict = field(default_factory=dict)
    integer_weights: int = 0
    largest_difference: float = 0.0


def export_onnx(model, path, *, opset=17, batch_size=None):
    """Writes a model as ONNX and checks that ONNX Runtime computes the same.

    A plain model becomes float ONNX. A quantization-aware model becomes QDQ ONNX:
    activations between QuantizeLinear and DequantizeLinear with the ranges it learned,
    weights stored as int8 behind a DequantizeLinear with the grid they learned (fewer
    bits, one scale, a learned step), so that runtimes use integer kernels. Layers that
    the model leaves float are so in the file.

    Args:
        model: Built `keras.Model` with symbolic inputs; of a distiller the student is
            exported.
        path: Path of the `.onnx` file. It is replaced only once the new one is good.
        opset: Version of the ONNX operator set, 13 to 18. The layout of images stays
            channels last.
        batch_size: Batch size of the file; `None` leaves it open.

    Returns:
        An `ONNXExport`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If an argument is out of place, the model cannot be converted, its
            activations do not have 8 bits or a weight has no symmetric grid, or ONNX
            Runtime computes something else than Keras.
        OSError: If the file cannot be written.
    """
    check_model(model)
    _check_arguments(opset, batch_size)
    check_writable(path)
    if isinstance(model, Distiller):
        model = model.student
    quantized = is_quantization_aware(model)
    if quantized:
        plain, weights = _graph_and_weights(model)
    else:
        plain, weights = plain_graph(model, half=True), []
    converted = _convert(plain, opset, batch_size)
    integer_weights = 0
    if quantized:
        integer_weights = store_integer_weights(converted, weights)
        drop_absorbed_relus(converted)
    with written_atomically(path) as temporary:
        try:
            _check_and_save(converted, temporary)
            inputs = _examples(plain, batch_size or _CHECKED_EXAMPLES)
            exact = _difference(temporary, plain, inputs, fused=False)
            fused = _difference(temporary, plain, inputs)
        except Exception as err:
            raise ValueError(
                f"Model {model.name!r} has an operation that ONNX Runtime cannot run: "
                f"{err}"
            ) from err
        _check_differences(model, path, quantized, exact, fused)
        content = pathlib.Path(temporary).read_bytes()
    counts = collections.Counter(node.op_type for node in converted.graph.node)
    return ONNXExport(
        path=os.fspath(path),
        bytes=len(content),
        gzip_bytes=gzip_bytes(content),
        opset=opset,
        operators=dict(counts.most_common()),
        integer_weights=integer_weights,
        largest_difference=fused[0],
    )


def _check_arguments(opset, batch_size):
    if opset not in _OPSETS:
        raise ValueError(
            "`opset` must be 13, the first with scales per channel, to 18, the last "
            f"that tf2onnx writes. Received: opset={opset}"
        )
    check_batch_size(batch_size)


def _graph_and_weights(model):
    """The export graph of a quantization-aware model, and its weights, checked."""
    found = sorted({quantizer.bits for quantizer in find_layers(model, FakeQuant)})
    if found != [8]:
        raise ValueError(
            "`export_onnx` writes 8-bit activations; `export_tflite` writes int16x8. "
            f"Model {model.name!r} was trained with activations of "
            f"{' and '.join(map(str, found))} bits. Train what "
            "tfc.quantize_aware(model, 'int8') returns, or write TFLite: "
            "tfc.export_tflite(model, path, kind='int16x8')."
        )
    plain, weights = export_graph_and_weights(model)
    check_weights(weights, model, "An ONNX file")
    return plain, weights


def _convert(model, opset, batch_size):
    import tf2onnx

    check_scopes(model)
    python_logging.getLogger("tf2onnx").setLevel(python_logging.ERROR)
    signature = [
        tf.TensorSpec((batch_size, *t.shape[1:]), t.dtype, name=t.name)
        for t in symbolic_inputs(model)
    ]

    infer = tf.function(flat_call(model), input_signature=signature, autograph=False)
    with quiet() as caught:
        try:
            converted, _ = tf2onnx.convert.from_function(
                infer,
                input_signature=signature,
                opset=opset,
                custom_op_handlers=handlers(),
            )
        except Exception as err:
            raise ValueError(
                f"tf2onnx cannot convert model {model.name!r}: {err} {caught()[-300:]}"
            ) from err
    return converted


def _check_and_save(converted, path):
    import onnx

    onnx.checker.check_model(converted, full_check=True)
    onnx.save(converted, os.fspath(path))


def _check_differences(model, path, quantized, exact, fused):
    """Raises unless what ONNX Runtime computes differs by rounding alone."""
    (exact_largest, exact_rms), (fused_largest, fused_rms) = exact, fused
    largest, squares = "the largest", "the outputs, as a root mean square,"
    checks = [
        (exact_largest, _FLOAT_TOLERANCE, largest),
        (fused_largest, _FLOAT_TOLERANCE, largest),
    ]
    if quantized:
        checks = [
            (exact_rms, _INTEGER_TOLERANCE, squares),
            (exact_largest, _LARGEST_TOLERANCE, largest),
            (fused_rms, MOST_ROUNDING, squares),
        ]
    for found, limit, of in checks:
        # So that a NaN fails too.
        if not found <= limit:
            raise ValueError(
                f"ONNX Runtime does not compute what model {model.name!r} does: "
                f"outputs differ by {found:.2g} of {of} (at most {limit:.2g} is "
                f"rounding). Nothing was written to {os.fspath(path)!r}."
            )


def _difference(path, model, inputs, *, fused=True):
    """The `relative_differences` from Keras.

    Args:
        path: Path of the file.
        model: The Keras model.
        inputs: List of arrays.
        fused: As of `ONNXRunner`.
    """
    expected = keras.tree.flatten(flat_call(model)(*inputs))
    found = ONNXRunner(path, fused=fused).predict(inputs)
    expected = [np.asarray(value) for value in expected]
    shapes, wanted = [a.shape for a in found], [a.shape for a in expected]
    if shapes != wanted:
        raise ValueError(f"its outputs have the shapes {shapes}, not {wanted}")
    return relative_differences(found, expected)


def _examples(model, count):
    rng = np.random.default_rng(0)
    return [_random(t, model, count, rng) for t in symbolic_inputs(model)]


def _random(tensor, model, count, rng):
    """Random examples for an input, over the range it is quantized to if it is."""
    shape = (count, *(size or 8 for size in tensor.shape[1:]))
    readers = Graph(model).consumers(tensor) if functional(model) is not None else []
    for call in readers:
        if isinstance(call.operation, ConstantFakeQuant):
            low, high = call.operation.low, call.operation.high
            return rng.uniform(low, high, shape).astype(tensor.dtype)
    if tensor.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape).astype(tensor.dtype)
