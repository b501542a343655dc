"""Export to TFLite, with the file read back and checked.

Example:
    ```python
    result = tfc.export_tflite(qat, "model.tflite", kind="int8")
    print(result)   # bytes, operators, tensor types, fully_integer
    ```
"""

import os
import pathlib
import tempfile
from dataclasses import dataclass, field

import keras
import tensorflow as tf

from tfcompress.checks import batches, check_model
from tfcompress.deploy.files import check_writable, gzip_bytes, written_atomically
from tfcompress.deploy.quiet import quiet
from tfcompress.deploy.scales import round_bias_scales
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.graph import (
    Graph,
    find_layers,
    flat_call,
    flatten,
    rewrite,
    symbolic_inputs,
)
from tfcompress.passes.distill import Distiller
from tfcompress.passes.export_graph import export_graph, is_quantization_aware
from tfcompress.passes.strip import strip

KINDS = ("float32", "int8")
_IO_TYPES = {"int8": tf.int8, "uint8": tf.uint8, "float32": tf.float32}


@dataclass(frozen=True)
class TFLiteExport:
    """What `export_tflite` wrote.

    Attributes:
        path: Path of the file.
        bytes: Its size.
        gzip_bytes: Its size after gzip -9, as an app store or an update delivers it.
        operators: Dict from operator to how often it occurs.
        tensor_types: Dict from type (`"INT8"`) to number of tensors.
        float_operators: The operators that read or write a float tensor, in file order.
        fully_integer: Whether no tensor of the file is float.
    """

    path: str
    bytes: int
    gzip_bytes: int
    operators: dict = field(default_factory=dict)
    tensor_types: dict = field(default_factory=dict)
    float_operators: list = field(default_factory=list)
    fully_integer: bool = False

    def __str__(self):
        operators = ", ".join(f"{n} {name}" for name, n in self.operators.items())
        types = ", ".join(f"{n} {name}" for name, n in self.tensor_types.items())
        return (
            f"{self.path}: {self.bytes:,} bytes ({self.gzip_bytes:,} gzip)\n"
            f"  operators: {operators}\n"
            f"  tensors:   {types}\n"
            f"  integers only: {'yes' if self.fully_integer else 'no'}"
        )


class NotFullyIntegerError(ValueError):
    """An integer file was asked for, and operations with float tensors remain."""


def export_tflite(
    model,
    path,
    *,
    kind="float32",
    io="int8",
    calibration_data=None,
    batch_size=1,
):
    """Converts a model to TFLite, reads the file back and checks it.

    Args:
        model: Built `keras.Model`: plain, or what a pass of this library returned. A
            quantization-aware model exports to `"int8"` with the ranges it learned; of
            a distiller the student is exported.
        path: Path of the `.tflite` file. It is replaced only once the new one is good.
        kind: `"float32"`, or `"int8"` for a file of integers only.
        io: Type of inputs and outputs of an `"int8"` file: `"int8"`, `"uint8"` or
            `"float32"` (then operations at the border convert, and `fully_integer` is
            about everything between them).
        calibration_data: For `"int8"` of a plain model: examples (as
            `quantize_aware` takes them) from which activation ranges are taken.
        batch_size: Batch size of the file; `None` leaves it open.

    Returns:
        A `TFLiteExport`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If an argument is out of place, calibration data are missing or do
            not fit, or the converter refuses the model.
        NotFullyIntegerError: If `kind="int8"` and a float operation remains; names it.
        OSError: If the file cannot be written.
    """
    check_model(model)
    _check_options(kind, io)
    check_writable(path)
    if isinstance(model, Distiller):
        model = model.student
    symbolic_inputs(model)
    if kind == "float32":
        if calibration_data is not None:
            raise ValueError(
                "A float32 file needs no `calibration_data`. For a file of integers "
                "pass kind='int8'."
            )
        content = _convert(_plain(model), batch_size, lambda converter: None)
    elif is_quantization_aware(model):
        if calibration_data is not None:
            raise ValueError(
                "A quantization-aware model has ranges of its own; `calibration_data` "
                "would not be used. Give them to `quantize_aware`, or export "
                "`tfc.strip(model)` with them."
            )
        content = _convert(
            export_graph(model, batch_size=batch_size), batch_size, _integers(io)
        )
    else:
        content = _convert(
            _plain(model),
            batch_size,
            _integers(io, _representative(model, calibration_data)),
        )
    if kind == "int8":
        content = round_bias_scales(content)
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)
        result = _describe(temporary, path, io)
        if kind == "int8" and not result.fully_integer:
            raise NotFullyIntegerError(_float_left(result))
    return result


def _check_options(kind, io):
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={kind!r}")
    if io not in _IO_TYPES:
        raise ValueError(f"`io` must be one of {tuple(_IO_TYPES)}. Received: io={io!r}")


def _plain(model):
    """The model without our layers, in float32 (mixed precision does not convert)."""
    model = strip(model)
    dtypes = {layer.compute_dtype for layer in find_layers(model, keras.layers.Layer)}
    if not dtypes & {"float16", "bfloat16"}:
        return model
    return rewrite(
        Graph(flatten(model)),
        lambda call, clone, args, kwargs: clone(call.operation)(*args, **kwargs),
        dtype="float32",
    )


def _integers(io, representative=None):
    def configure(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = _IO_TYPES[io]
        converter.inference_output_type = _IO_TYPES[io]
        if representative is not None:
            converter.representative_dataset = representative
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    return configure


def _representative(model, data):
    """Single examples for the converter's calibration, checked before it starts."""
    if data is None:
        raise ValueError(
            "An int8 file of a plain model needs `calibration_data`: 100 to 500 "
            "examples like those it will see. Or train with "
            "tfc.quantize_aware(model) first."
        )
    checked = [
        inputs for inputs, _ in batches(model, data, argument="calibration_data")
    ]
    names = [f"input_{i}" for i in range(len(checked[0]))]

    def examples():
        for inputs in checked:
            for row in range(len(inputs[0])):
                yield {n: a[row : row + 1] for n, a in zip(names, inputs, strict=True)}

    return examples


def _convert(model, batch_size, configure):
    """Converts by way of a SavedModel, which holds for every kind of Keras model."""
    with tempfile.TemporaryDirectory() as folder, quiet() as caught:
        try:
            _save(model, batch_size, folder)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            configure(converter)
            return converter.convert()
        except Exception as err:
            raise ValueError(
                f"The TFLite converter refuses model {model.name!r}: "
                f"{_reason(err, caught())}"
            ) from err


def _save(model, batch_size, folder):
    specs = [
        tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype, name=f"input_{i}")
        for i, tensor in enumerate(symbolic_inputs(model))
    ]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", flat_call(model), input_signature=specs)
    archive.write_out(folder, verbose=False)


def _reason(err, caught):
    lines = [line.strip() for line in f"{caught}\n{err}".splitlines()]
    telling = [
        line for line in lines if "error:" in line.lower() and not line.endswith(":")
    ]
    return (telling or [line for line in lines if line] or [type(err).__name__])[-1]


def _describe(temporary, path, io):
    file = read_tflite(temporary)
    floats = file.float_operations()
    if io == "float32":
        floats = [op for op in floats if not _at_border(op, file)]
    return TFLiteExport(
        path=os.fspath(path),
        bytes=file.bytes,
        gzip_bytes=gzip_bytes(pathlib.Path(temporary).read_bytes()),
        operators=file.operator_counts(),
        tensor_types=file.tensor_types(),
        float_operators=[op.operator for op in floats],
        fully_integer=not floats,
    )


def _at_border(operation, file):
    """Whether it only converts a float input or output of the file."""
    inputs, outputs = {t.index for t in file.inputs}, {t.index for t in file.outputs}
    if operation.operator == "QUANTIZE":
        return operation.inputs[0].index in inputs
    return operation.operator == "DEQUANTIZE" and operation.outputs[0].index in outputs


def _float_left(result):
    names = ", ".join(dict.fromkeys(result.float_operators))
    return (
        f"The file would not be integers only: {len(result.float_operators)} "
        f"operation(s) stay float ({names}). Nothing was written to {result.path!r}. "
        "Replace those layers, or export kind='float32'."
    )
