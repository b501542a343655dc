"""Reads a `.tflite` file: its operations, tensors and constants.

The bytes are verified before they are read, so a damaged file is an error and not a
crash.

Example:
    ```python
    file = read_tflite("model.tflite")
    [operation.operator for operation in file.operations]   # ["CONV_2D", ...]
    ```
"""

import collections
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfcompress.deploy.apart import FileCrashError, FileRunError, check_loads
from tfcompress.deploy.sparse import densified

_NUMPY_TYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "FLOAT64": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
}
_FOUR_BITS = ("INT4", "UINT4")
FLOAT_TYPES = ("FLOAT32", "FLOAT16", "FLOAT64", "BFLOAT16", "COMPLEX64", "COMPLEX128")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        index: Number within its subgraph.
        name: Name the converter gave it.
        shape: Shape at batch size 1; see `dynamic`.
        dtype: Type as TFLite spells it: `"INT8"`, `"FLOAT32"`, ...
        scale: Float32 array, one value or one a channel; `None` if not quantized.
        zero_point: Integer array like `scale`, or `None`.
        quantized_axis: Axis that `scale` runs along, where it has several values.
        dynamic: Whether a dimension is only known at run time.
        buffer: The bytes of a constant, `None` for what is computed.
        sparsity: How a sparse constant is stored, or `None`.
    """

    index: int
    name: str
    shape: tuple
    dtype: str
    scale: Any = field(default=None, repr=False)
    zero_point: Any = field(default=None, repr=False)
    quantized_axis: int = 0
    dynamic: bool = False
    buffer: Any = field(default=None, repr=False)
    sparsity: Any = field(default=None, repr=False)

    @property
    def constant(self):
        """Whether the value is stored in the file."""
        return self.buffer is not None

    @property
    def size(self):
        """Number of elements."""
        return math.prod(self.shape)

    def value(self):
        """The constant as a numpy array of its stored type; `None` if not constant.

        4-bit integers come as int8, or uint8, one a number.

        Raises:
            ValueError: If the constant is damaged, or packed in a form this reader
                does not unpack (2-bit integers).
        """
        if self.buffer is None:
            return None
        if self.sparsity is not None:
            return self._densified()
        if self.dtype in _FOUR_BITS and len(self.buffer) == (self.size + 1) // 2:
            return unpack_int4(self.buffer, self.shape, signed=self.dtype == "INT4")
        dtype = _NUMPY_TYPES.get(self.dtype)
        if dtype is None or len(self.buffer) != self.size * np.dtype(dtype).itemsize:
            raise ValueError(
                f"Cannot read the constant {self.name!r}: {len(self.buffer)} bytes for "
                f"{self.dtype} of shape {self.shape} (packed or damaged)."
            )
        return np.frombuffer(self.buffer, dtype).reshape(self.shape)

    def _densified(self):
        try:
            values = np.frombuffer(self.buffer, _NUMPY_TYPES[self.dtype])
            return densified(values, self.shape, self.sparsity)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as err:
            raise ValueError(
                f"Cannot read the sparse constant {self.name!r} of {self.dtype}: {err}"
            ) from err


@dataclass(frozen=True)
class Operation:
    """An operation of the file.

    Attributes:
        index: Position in the file, which is execution order.
        operator: TFLite's name, `"CONV_2D"`; of a custom operation, its own name.
        version: Operator version the file asks for.
        inputs: Tensors; `None` for an optional input that is absent.
        outputs: Tensors.
        options: Builtin options by the schema's names, `{"strideW": 1, ...}`.
        custom: Whether it is a custom operation.
    """

    index: int
    operator: str
    version: int
    inputs: tuple
    outputs: tuple
    options: dict = field(repr=False)
    custom: bool = False


@dataclass(frozen=True)
class TFLiteFile:
    """What a `.tflite` file holds.

    Operations, tensors, inputs and outputs are those of the main subgraph; `bodies` has
    the others, which operations such as `WHILE` run, in the same form. Counts are of
    all of them.
    """

    path: str
    bytes: int
    operations: tuple
    tensors: tuple
    inputs: tuple
    outputs: tuple
    bodies: tuple = field(default=(), repr=False)

    @property
    def graphs(self):
        """The main subgraph and its bodies."""
        return (self, *self.bodies)

    def operator_counts(self):
        """Dict from operator to how often it occurs, most frequent first."""
        counts = collections.Counter(
            op.operator for graph in self.graphs for op in graph.operations
        )
        return dict(counts.most_common())

    def constants(self):
        """The constants that an operation of any subgraph reads."""
        return [t for g in self.graphs for t in g.used_tensors() if t.constant]

    def used_tensors(self):
        """The tensors of the main subgraph that an operation reads or writes."""
        used = {t.index: t for t in (*self.inputs, *self.outputs)}
        for op in self.operations:
            used.update((t.index, t) for t in (*op.inputs, *op.outputs) if t)
        return [used[index] for index in sorted(used)]

    def tensor_types(self):
        """Dict from type to number of tensors, of those an operation uses."""
        counts = collections.Counter(
            t.dtype for graph in self.graphs for t in graph.used_tensors()
        )
        return dict(counts.most_common())

    def float_operations(self):
        """The operations that read or write a float tensor."""
        return [
            op
            for graph in self.graphs
            for op in graph.operations
            if any(t and t.dtype in FLOAT_TYPES for t in (*op.inputs, *op.outputs))
        ]


def read_tflite(path):
    """Reads and verifies a `.tflite` file.

    Args:
        path: Path of the file.

    Returns:
        A `TFLiteFile`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, damaged or no TFLite model.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such .tflite file: {os.fspath(path)!r}")
    content = path.read_bytes()
    _verify(content, path)
    formats = schema()
    with damage_named(path):
        model = formats.ModelT.InitFromPackedBuf(content, 0)
        _check_buffers(model, len(content))
        return _parse(model, formats, os.fspath(path), len(content))


@contextlib.contextmanager
def damage_named(path):
    """Turns errors met in the content of a file into one that names it.

    The bytes of a flatbuffer may be sound and still say what makes no sense: tensors
    that are not there, constants shorter than their shape.

    Raises:
        ValueError: If the body raised an error, unless that names the file already.
    """
    try:
        yield
    except Exception as err:
        if isinstance(err, (OSError, ValueError)) and os.fspath(path) in str(err):
            raise
        raise ValueError(
            f"Cannot read {os.fspath(path)!r}: the bytes are a TFLite flatbuffer, but "
            f"their content is damaged ({type(err).__name__}: {err})."
        ) from err


def _verify(content, path):
    if content[4:8] != b"TFL3":
        raise ValueError(
            f"Not a TFLite model: {os.fspath(path)!r} ({len(content)} bytes) lacks the "
            "identifier 'TFL3'. Write one with tfc.export_tflite(model, path)."
        )
    try:
        check_loads(path)
    except FileRunError as err:
        # Anything else, such as an operator this runtime lacks, is for the reader of
        # the file to judge, not for us.
        if "Flatbuffer" in str(err):
            raise ValueError(_damaged(content, path)) from err
    except FileCrashError as err:
        raise ValueError(_damaged(content, path)) from err


def _damaged(content, path):
    return (
        f"Damaged TFLite model: {os.fspath(path)!r} ({len(content)} bytes) is "
        "truncated or was altered. Export or copy it again."
    )


def pack_int4(integers):
    """Packs integers from -8 to 7 two a byte, the first in the low half.

    Args:
        integers: Integer array, any shape.

    Returns:
        Flat uint8 array of half the size; of an odd number, the last half is 0.
    """
    nibbles = np.asarray(integers, np.int8).ravel().view(np.uint8) & 15
    nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
    return nibbles[::2] | nibbles[1::2] << 4


def unpack_int4(packed, shape, *, signed=True):
    """Undoes `pack_int4`.

    Args:
        packed: Bytes, or uint8 array.
        shape: Shape of the result.
        signed: Whether the integers are from -8 to 7, or else from 0 to 15.

    Returns:
        int8 array, or uint8.
    """
    data = np.frombuffer(bytes(packed), np.uint8)
    nibbles = np.stack([data & 15, data >> 4], axis=-1).ravel()[: math.prod(shape)]
    if signed:
        nibbles = (nibbles ^ 8).astype(np.int8) - 8
    return nibbles.reshape(shape)


@functools.cache
def schema():
    """The generated classes of the TFLite schema, imported when first needed."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@functools.cache
def _names(enum):
    return {v: k for k, v in vars(enum).items() if isinstance(v, int)}


def parsed(content):
    """The file as the schema's own objects, which may be changed."""
    return schema().ModelT.InitFromPackedBuf(content, 0)


def serialized(model, size=1024):
    """Bytes of a file from what `parsed` returned.

    Args:
        model: The `ModelT`.
        size: How large it may be, to begin with.
    """
    import flatbuffers

    builder = flatbuffers.Builder(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _check_buffers(model, size):
    """Raises if vectors overlap, as only a hostile file's do: they would be copied."""
    vectors = [b.data for b in model.buffers]
    for graph in model.subgraphs:
        vectors += [t.shape for t in graph.tensors]
        vectors += [v for op in graph.operators or () for v in (op.inputs, op.outputs)]
    total = sum(len(vector) for vector in vectors if vector is not None)
    if total > size:
        raise ValueError(f"vectors of {total} numbers in {size} bytes")


def _parse(model, formats, path, size):
    buffers = [
        bytes(b.data) if b.data is not None and len(b.data) else None
        for b in model.buffers
    ]
    main, *bodies = (
        _graph(model, graph, formats, buffers, path, size) for graph in model.subgraphs
    )
    return dataclasses.replace(main, bodies=tuple(bodies))


def _graph(model, graph, formats, buffers, path, size):
    tensors = tuple(
        _tensor(index, t, buffers, formats) for index, t in enumerate(graph.tensors)
    )
    return TFLiteFile(
        path=path,
        bytes=size,
        operations=tuple(
            _operation(index, op, model, tensors, formats)
            for index, op in enumerate(graph.operators or ())
        ),
        tensors=tensors,
        inputs=tuple(tensors[i] for i in _ints(graph.inputs)),
        outputs=tuple(tensors[i] for i in _ints(graph.outputs)),
    )


def _tensor(index, tensor, buffers, formats):
    quantization = tensor.quantization
    scale = getattr(quantization, "scale", None)
    quantized = scale is not None and len(scale) > 0
    signature = tensor.shapeSignature
    return Tensor(
        index=index,
        name=(tensor.name or b"").decode(errors="replace"),
        shape=tuple(int(d) for d in (tensor.shape if tensor.shape is not None else ())),
        dtype=_names(formats.TensorType)[tensor.type],
        scale=np.asarray(scale, np.float32) if quantized else None,
        zero_point=np.asarray(quantization.zeroPoint) if quantized else None,
        quantized_axis=quantization.quantizedDimension if quantized else 0,
        dynamic=signature is not None and any(d < 0 for d in signature),
        buffer=buffers[tensor.buffer],
        sparsity=tensor.sparsity,
    )


def _operation(index, operator, model, tensors, formats):
    code = model.operatorCodes[operator.opcodeIndex]
    # Files from before the schema had 128 operators fill the deprecated field only.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    custom = number == formats.BuiltinOperator.CUSTOM
    options = operator.builtinOptions
    return Operation(
        index=index,
        operator=(
            (code.customCode or b"CUSTOM").decode(errors="replace")
            if custom
            else _names(formats.BuiltinOperator)[number]
        ),
        version=code.version,
        inputs=tuple(tensors[i] if i >= 0 else None for i in _ints(operator.inputs)),
        outputs=tuple(tensors[i] for i in _ints(operator.outputs)),
        options=dict(vars(options)) if options is not None else {},
        custom=custom,
    )


def _ints(array):
    return () if array is None else tuple(int(i) for i in array)
