"""Export to TFLite, with the file read back and checked.

Example:
    ```python
    result = tfc.export_tflite(qat, "model.tflite", kind="int8")
    print(result)   # bytes, operators, tensor types, fully_integer
    ```
"""

import collections
import os
from dataclasses import dataclass, field

import keras

from tfcompress.checks import check_batch_size, check_model
from tfcompress.deploy import edgetpu_form
from tfcompress.deploy.apart import FileCrashError, FileRunError, check_prepares
from tfcompress.deploy.converter import calibrate_and_convert, convert, examples
from tfcompress.deploy.files import check_writable, gzip_bytes, written_atomically
from tfcompress.deploy.integers import integer_file
from tfcompress.deploy.low_bits import StoredWeights
from tfcompress.deploy.metadata import with_metadata
from tfcompress.deploy.scales import round_bias_scales
from tfcompress.deploy.signatures import input_names, output_names, with_signature
from tfcompress.deploy.tflite_file import FLOAT_TYPES, read_tflite
from tfcompress.deploy.tflite_kinds import (
    FLOAT_KINDS,
    IO,
    KINDS,
    SPARSE_KINDS,
    check_inputs,
    check_kind,
    float_settings,
)
from tfcompress.graph import find_layers, symbolic_inputs
from tfcompress.passes.distill import Distiller
from tfcompress.passes.export_graph import is_quantization_aware
from tfcompress.passes.plain_graph import plain_graph
from tfcompress.passes.quantize import quantize_aware
from tfcompress.selection import matches

TARGETS = ("edgetpu",)
# Kinds that the converter cannot calibrate -> preset of `quantize_aware`.
_PRESETS = {"int4": "int4_weights", "int16x8": "int16x8"}

_RUN_SUBGRAPHS = ("WHILE", "IF", "STABLEHLO_WHILE", "CALL_ONCE")
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
_BITS = {"FLOAT32": 32, "FLOAT16": 16, "INT16": 16, "INT8": 8, "INT4": 4}


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
        weights: `StoredWeights`: how many weight tensors have which bits, and how many
            of them are packed two values a byte. Weights of fewer bits that are not
            packed lie in the file as 8-bit integers.
    """

    path: str
    bytes: int
    gzip_bytes: int
    operators: dict = field(default_factory=dict)
    tensor_types: dict = field(default_factory=dict)
    float_operators: list = field(default_factory=list)
    fully_integer: bool = False
    weights: StoredWeights = field(default_factory=StoredWeights)

    def __str__(self):
        operators = ", ".join(f"{n} {name}" for name, n in self.operators.items())
        types = ", ".join(f"{n} {name}" for name, n in self.tensor_types.items())
        return (
            f"{self.path}: {self.bytes:,} bytes ({self.gzip_bytes:,} gzip)\n"
            f"  operators: {operators}\n"
            f"  tensors:   {types}\n"
            f"  weights:   {self.weights}\n"
            f"  integers only: {'yes' if self.fully_integer else 'no'}"
        )


class NotFullyIntegerError(ValueError):
    """An integer file was asked for, and operations with float tensors remain."""


def export_tflite(
    model,
    path,
    *,
    kind="float32",
    io=None,
    calibration_data=None,
    batch_size=1,
    pack="dense",
    sparse=False,
    allow_float=(),
    target=None,
    metadata=None,
):
    """Converts a model to TFLite, reads the file back and checks it.

    Args:
        model: Built `keras.Model`: plain, or what a pass of this library returned. A
            quantization-aware model exports with the ranges and the weights' grids that
            it learned; of a distiller the student is exported.
        path: Path of the `.tflite` file. It is replaced only once the new one is good.
        kind: `"float32"`; `"float16"` for weights of half the bytes, which a CPU
            widens when it loads them; `"dynamic_range"` for weights of int8 and
            activations in float, of convolutions and dense layers with 1,024 weights
            and more; `"int8"` for a file of integers only; `"int4"` for one with
            weights of 4 bits; `"int16x8"` for one with activations of 16 bits and
            weights of 8 or less.
        io: Type of inputs and outputs of an integer file: `"int8"`, `"uint8"` (not of
            an `"int16x8"` file, which has `"int16"`) or `"float32"` (then operations at
            the border convert, and `fully_integer` is about everything between them).
            `None` is the integer type of the kind. Inputs of integers, such as indices
            of words, stay as they are. Of other kinds it is `"float32"`.
        calibration_data: For an integer file of a plain model: examples (as
            `quantize_aware` takes them) from which activation ranges are taken. A model
            with recurrent layers, or for `"int16x8"` or `"int4"`, is passed through
            `quantize_aware` with them; of others the converter takes the ranges.
        batch_size: Batch size of the file; `None` leaves it open: it runs one example
            at a time until `interpreter.resize_tensor_input` says otherwise.
        pack: Whether weights of 4 bits or less are stored two a byte: `"dense"` those
            of dense layers, `True` those of convolutions as well, which LiteRT computes
            several times slower so on a CPU, `False` none. It changes no value.
        sparse: Whether kernels with many zeros are stored in TFLite's sparse format,
            in a `"float32"` or `"float16"` file. It pays where the file lies on a disk
            uncompressed; it does not run faster, for the CPU expands the kernels.
        allow_float: Regular expressions of TFLite operators (`"CUMSUM"`) that may have
            float tensors in an integer file. What converts to and from them may, too.
            Convolutions and dense layers that `quantize_aware` left float are so in the
            file if anything may be; else they are computed in integers where TFLite has
            some for them, with weights rounded to 8 bits.
        target: `"edgetpu"` for an `"int8"` file of operator versions that the Edge TPU
            compiler of 2021 reads, with the same results: dense layers on several
            positions or with a scale for each unit become 1x1 convolutions, grouped
            convolutions one for each group, nearest upsampling operations that are
            mapped, activations within transposed convolutions operations of their own.
            Inputs and outputs are `"int8"` or `"uint8"`, the batch size is 1. Dense
            layers of a plain model get one scale each.
        metadata: `tfc.Metadata` to put into the file: labels, normalization, author.

    The signature `"serving_default"` has the model's own names: keys of a dict of
    inputs or outputs, or else names of input layers and of the layers that compute the
    outputs. The file has them in the order of `model.inputs` and `model.outputs`.

    Returns:
        A `TFLiteExport`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If an argument is out of place, calibration data are missing or do
            not fit, a weight cannot be stored, the converter refuses the model, the
            runtime or the compiler of `target` the file, or its weights are not of the
            kind.
        NotFullyIntegerError: If a float operation remains in an integer file that is
            not in `allow_float`; names it.
        OSError: If the file cannot be written.
    """
    check_model(model)
    io = _checked_io(kind, io)
    _check_pack(pack)
    check_batch_size(batch_size)
    edgetpu = _is_edgetpu(target)
    if edgetpu:
        edgetpu_form.check_settings(kind, io, batch_size)
        pack = False
    _check_sparse(sparse, kind)
    check_writable(path)
    if isinstance(model, Distiller):
        model = model.student
    symbolic_inputs(model)
    if kind not in FLOAT_KINDS and not allow_float:
        check_inputs(model, kind)
    names = input_names(model), output_names(model)
    content, stored = _converted(
        *(model, kind, io, calibration_data, batch_size, pack, sparse),
        keep_float=bool(allow_float),
        edgetpu=edgetpu,
    )
    content = with_signature(content, *names)
    if metadata is not None:
        content = with_metadata(content, metadata)
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)
        file = read_tflite(temporary)
        floats = [op for op in file.float_operations() if not _at_border(op, file, io)]
        if kind not in FLOAT_KINDS:
            _check_float(floats, file, path, allow_float)
        check_kind(file, kind, stored=stored, sparse=sparse)
        _check_prepares(temporary, path)
        if edgetpu:
            edgetpu_form.check_accepted(file)
        result = _describe(file, floats, content, path, stored)
    return result


def _converted(model, kind, io, data, batch_size, pack, sparse, *, keep_float, edgetpu):
    """Bytes of the file, and `StoredWeights`."""
    if kind in FLOAT_KINDS:
        if data is not None:
            raise ValueError(
                f"A {kind} file needs no `calibration_data`. For a file of integers "
                "pass kind='int8'."
            )
        settings = float_settings(kind, sparse=sparse)
        return convert(plain_graph(model), batch_size, settings), StoredWeights()
    if edgetpu:
        model = edgetpu_form.mappable_layers(model)
    model, calibration = _with_ranges(model, kind, data)
    stored = StoredWeights()
    if calibration is not None:
        content = calibrate_and_convert(
            model, batch_size, io, calibration, one_scale_dense=edgetpu
        )
    else:
        bits = "int16x8" if kind == "int16x8" else "int8"
        content, stored = integer_file(
            model,
            kind=bits,
            io=io,
            batch_size=batch_size,
            pack=pack,
            keep_float=keep_float,
        )
    content = round_bias_scales(content)
    return edgetpu_form.edgetpu_form(content) if edgetpu else content, stored


def _check_prepares(temporary, path):
    """Raises unless the runtime can set the file up."""
    try:
        check_prepares(temporary)
    except (FileCrashError, FileRunError) as err:
        reason = str(err).partition(": ")[2] or str(err)
        raise ValueError(
            f"LiteRT cannot run the converted file: {reason}. Nothing was written to "
            f"{os.fspath(path)!r}. Export another kind."
        ) from err


def _checked_io(kind, io):
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={kind!r}")
    if io is None:
        return IO[kind][0]
    if io not in IO[kind]:
        raise ValueError(
            f"`io` of kind={kind!r} must be one of {IO[kind]}. Received: io={io!r}"
        )
    return io


def _is_edgetpu(target):
    if target is not None and target not in TARGETS:
        raise ValueError(
            f"`target` must be one of {TARGETS} or None. Received: target={target!r}"
        )
    return target == "edgetpu"


def _check_sparse(sparse, kind):
    if sparse not in (True, False):
        raise ValueError(f"`sparse` must be True or False. Received: sparse={sparse!r}")
    if sparse and kind not in SPARSE_KINDS:
        raise ValueError(
            f"LiteRT runs the sparse format of the kinds {SPARSE_KINDS} only. "
            f"Received: kind={kind!r}. Zeros of other kinds shrink where the file is "
            "compressed."
        )


def _check_pack(pack):
    if pack not in ("dense", True, False):
        raise ValueError(
            f"`pack` must be 'dense', True or False. Received: pack={pack!r}"
        )


def _with_ranges(model, kind, data):
    """The model to convert, and examples if the converter is to find the ranges."""
    if is_quantization_aware(model):
        if data is not None:
            raise ValueError(
                "A quantization-aware model has ranges of its own; `calibration_data` "
                "would not be used. Give them to `quantize_aware`, or export "
                "`tfc.strip(model)` with them."
            )
        return model, None
    if data is None:
        raise ValueError(
            f"An {kind} file of a plain model needs `calibration_data`: 100 to 500 "
            "examples like those it will see. Or train with "
            f"tfc.quantize_aware(model, {_PRESETS.get(kind, kind)!r}) first."
        )
    # The converter crashes on their loops; `quantize_aware` unrolls them.
    if kind in _PRESETS or find_layers(model, keras.layers.RNN):
        return _quantized(model, _PRESETS.get(kind, kind), data), None
    plain = plain_graph(model)
    return plain, examples(plain, data)


def _quantized(model, kind, data):
    try:
        return quantize_aware(model, kind, calibration_data=data)
    except ValueError as err:
        if "Cannot quantize" not in str(err):
            raise
        raise ValueError(
            f"{err}\n`export_tflite` passed the model through `quantize_aware`. Call "
            "that yourself, which you can tell more, and export what it returns."
        ) from err


def _describe(file, floats, content, path, stored):
    return TFLiteExport(
        path=os.fspath(path),
        bytes=file.bytes,
        gzip_bytes=gzip_bytes(content),
        operators=file.operator_counts(),
        tensor_types=file.tensor_types(),
        float_operators=[op.operator for op in floats],
        fully_integer=not floats,
        weights=_weights(file, stored),
    )


def _weights(file, stored):
    """`StoredWeights` of all kernels, of which `stored` tells those of other grids."""
    bits = collections.Counter(
        _BITS[tensor.dtype]
        for tensor in file.constants()
        if len(tensor.shape) > 1
        and tensor.dtype in _BITS
        and (tensor.scale is not None or tensor.dtype in FLOAT_TYPES)
    )
    for width, count in stored.tensors.items():
        # They were counted as what the file has them in.
        packed = stored.packed.get(width, 0)
        bits.subtract({4: packed, 8: count - packed})
        bits[width] += count
    return StoredWeights({b: n for b, n in bits.items() if n > 0}, stored.packed)


def _at_border(operation, file, io):
    """Whether it only converts a float input or output of the file."""
    if io != "float32" or not _in_main(operation, file):
        return False
    inputs, outputs = {t.index for t in file.inputs}, {t.index for t in file.outputs}
    if operation.operator == "QUANTIZE":
        return operation.inputs[0].index in inputs
    return operation.operator == "DEQUANTIZE" and operation.outputs[0].index in outputs


def _in_main(operation, file):
    """Whether it is of the main subgraph, not of one that an operation runs."""
    return any(operation is other for other in file.operations)


def _check_float(floats, file, path, patterns):
    """Raises unless the float operations of an integer file are allowed ones."""
    allowed = [op for op in floats if any(matches(p, op.operator) for p in patterns)]
    # Who allows a loop allows what it runs.
    if any(op.operator in _RUN_SUBGRAPHS for op in allowed):
        floats = [op for op in floats if _in_main(op, file)]
    islands = {
        t.index
        for op in allowed
        if _in_main(op, file)
        for t in (*op.inputs, *op.outputs)
        if t
    }
    left = [
        op.operator
        for op in floats
        if not any(op is other for other in allowed)
        and not (_in_main(op, file) and _leads_to(op, islands))
    ]
    if left:
        names = list(dict.fromkeys(left))
        telling = [name for name in names if name not in _CONVERSIONS] or names
        raise NotFullyIntegerError(
            f"The file would not be integers only: {len(left)} operation(s) stay float "
            f"({', '.join(names)}). Nothing was written to {os.fspath(path)!r}. "
            "Replace those layers, export kind='float32', or accept them by name: "
            f"allow_float={telling}."
        )


def _leads_to(operation, tensors):
    """Whether it only converts to or from float for an operation that may be so."""
    return operation.operator in _CONVERSIONS and any(
        tensor.index in tensors for tensor in (*operation.inputs, *operation.outputs)
    )
