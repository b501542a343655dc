"""What the kinds of `.tflite` file are: how to ask for one, and how to tell it.

Example:
    ```python
    content = convert(plain, 1, float_settings("float16"))
    check_kind(file, "float16")
    ```
"""

import keras
import tensorflow as tf

from tfcompress.deploy.tflite_file import FLOAT_TYPES
from tfcompress.graph import Graph, flatten
from tfcompress.layers import TransformWeights

# Kind -> types that inputs and outputs may have, the default first.
IO = {
    "float32": ("float32",),
    "float16": ("float32",),
    "dynamic_range": ("float32",),
    "int8": ("int8", "uint8", "float32"),
    "int4": ("int8", "uint8", "float32"),
    "int16x8": ("int16", "float32"),
}
KINDS = tuple(IO)

# Those that the converter makes of a float model by itself.
FLOAT_KINDS = ("float32", "float16", "dynamic_range")

# Those that the runtime takes in the sparse format.
SPARSE_KINDS = ("float32", "float16")

# Operators that the converter gives weights of another type, and how large these are
# at least where it makes integers of them.
_WITH_KERNEL = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_LEAST_DYNAMIC = 1024

# Types of inputs that are images, not indices.
_IMAGE_TYPES = ("uint8", "int8")

# Layers that make floats of integers by looking them up, not by computing with them.
_LOOKUPS = (keras.layers.Embedding, keras.layers.CategoryEncoding)


def check_inputs(model, kind):
    """Raises if an integer file would cast an image of integers to floats.

    The types of the file's border follow from `io=`: the converter makes an integer of
    a float input, and leaves a cast where the model has an integer one.

    Args:
        model: `keras.Model` with symbolic inputs.
        kind: Kind of the file, not one of `FLOAT_KINDS`.

    Raises:
        ValueError: If an input is uint8 or int8, and something computes with it.
    """
    if not any(t.dtype in _IMAGE_TYPES for t in keras.tree.flatten(model.inputs)):
        return
    graph = Graph(flatten(model, keep_subclassed=True))
    for tensor in graph.inputs:
        if tensor.dtype in _IMAGE_TYPES and _computed_with(tensor, graph):
            advice = (
                f" and pass io={tensor.dtype!r}" if tensor.dtype in IO[kind] else ""
            )
            raise ValueError(
                f"Input {tensor.name!r} is {tensor.dtype}: give the model a float32 "
                f"input{advice}. A file of integers only has no operation that makes "
                f"numbers of {tensor.dtype} values, while a float32 input becomes "
                "integers in the file, with the same range of values."
            )


def _computed_with(tensor, graph):
    """Whether anything but a lookup makes floats of an integer tensor."""
    for call in graph.consumers(tensor):
        operation = call.operation
        if isinstance(operation, TransformWeights):
            operation = operation.layer
        if isinstance(operation, _LOOKUPS) or type(operation).__name__ == "OneHot":
            continue
        for output in call.outputs:
            if keras.backend.is_float_dtype(output.dtype):
                return True
            if _computed_with(output, graph):
                return True
    return False


def float_settings(kind, *, sparse=False):
    """What the converter needs to be told for a file that computes in float.

    Args:
        kind: One of `FLOAT_KINDS`.
        sparse: Whether to store kernels with many zeros in the sparse format.

    Returns:
        Function that sets up a `tf.lite.TFLiteConverter`.
    """

    def configure(converter):
        converter.optimizations = [
            *([tf.lite.Optimize.DEFAULT] if kind != "float32" else ()),
            *([tf.lite.Optimize.EXPERIMENTAL_SPARSITY] if sparse else ()),
        ]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]

    return configure


def check_kind(file, kind, *, stored=None, sparse=False):
    """Raises unless the weights of a file are what its kind says.

    Float operations of integer files are not looked at here.

    Args:
        file: A `TFLiteFile`.
        kind: One of `KINDS`.
        stored: `StoredWeights` of a file of integers.
        sparse: Whether it should have sparse weights.

    Raises:
        ValueError: If they are not; says which and what to do.
    """
    _CHECKS[kind](file, stored)
    if sparse and not any(t.sparsity is not None for t in file.constants()):
        raise ValueError(
            "sparse=True: no weight of the model has zeros enough to be stored in the "
            "sparse format. Prune it first: callbacks=[tfc.Pruning(0.8)]."
        )


def _float32(file, stored):
    other = {t.dtype for t in file.constants() if t.scale is not None}
    other |= {t.dtype for t in file.constants() if t.dtype in FLOAT_TYPES}
    if other - {"FLOAT32"}:
        raise ValueError(
            f"The float32 file would hold weights of {sorted(other - {'FLOAT32'})}."
        )


def _float16(file, stored):
    left = _kernels(file, "FLOAT32")
    if left or not any(t.dtype == "FLOAT16" for t in file.constants()):
        raise ValueError(
            "The converter left weights in float32 that should be float16: "
            f"{_shapes(left) or 'all, for the model has none that it converts'}. "
            "Export kind='float32'."
        )


def _dynamic_range(file, stored):
    left = [t for t in _kernels(file, "FLOAT32") if t.size >= _LEAST_DYNAMIC]
    if left or not any(
        t.dtype == "INT8" and t.scale is not None for t in file.constants()
    ):
        raise ValueError(
            "The converter left weights in float32 that should be int8: "
            f"{_shapes(left) or 'all'}. It rounds kernels of convolutions and dense "
            f"layers with {_LEAST_DYNAMIC} weights or more. Export kind='float16', or "
            "kind='int8' with calibration_data."
        )


def _int8(file, stored):
    if not any(t.dtype in ("INT8", "UINT8") for t in file.used_tensors()):
        raise ValueError(
            "The model has nothing to compute in integers: no tensor of the file is "
            "int8. Export kind='float32'."
        )


def _int16x8(file, stored):
    if not any(t.dtype == "INT16" for t in file.used_tensors()):
        raise ValueError(
            "The model has nothing to compute in integers: no tensor of the file is "
            "int16. Export kind='float32'."
        )


def _int4(file, stored):
    if not any(bits <= 4 and count for bits, count in stored.tensors.items()):
        raise ValueError(
            "No weight of the model has 4 bits or less. Train what tfc.quantize_aware("
            "model, 'int4_weights') returns, or export kind='int8'."
        )


_CHECKS = {
    "float32": _float32,
    "float16": _float16,
    "dynamic_range": _dynamic_range,
    "int8": _int8,
    "int4": _int4,
    "int16x8": _int16x8,
}


def _kernels(file, dtype):
    """The constant weights of that type that kernels' operators read."""
    return [
        tensor
        for graph in file.graphs
        for operation in graph.operations
        if operation.operator in _WITH_KERNEL
        for tensor in operation.inputs[1:2]
        if tensor is not None and tensor.constant and tensor.dtype == dtype
    ]


def _shapes(tensors):
    return ", ".join(f"{t.name!r} {t.shape}" for t in tensors[:5])
