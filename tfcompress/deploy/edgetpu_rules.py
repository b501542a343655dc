"""The rules by which an operation is expected on the Edge TPU or on the CPU.

To correct a rule, or add an operation, change the table `_RULES`. What surrounds an
operation is no matter of this module: see `edgetpu_check`.

Example:
    ```python
    file = read_tflite("model.tflite")
    judge(file.operations[0], file.inputs)   # Verdict(mapped=True, certain=True, ...)
    ```
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tfcompress.deploy.tflite_file import FLOAT_TYPES

_EXPORT = 'Export it with tfc.export_tflite(model, path, kind="int8").'
_TARGET = (
    'Export it with tfc.export_tflite(model, path, kind="int8", target="edgetpu").'
)
_BATCH = "Keep the batch dimension as it is, with batch size 1."
_LAST = "Replace it, or let it run after the model."
_INTEGERS = ("INT8", "UINT8")


class Verdict(NamedTuple):
    """As in `MappedOperation`; a certain CPU verdict is the most severe."""

    mapped: bool
    certain: bool
    reason: str = ""
    remedy: str = ""

    @property
    def order(self):
        return self.mapped, self.mapped == self.certain


def cpu(reason, remedy, certain=True):
    """The verdict that an operation stays on the CPU."""
    return Verdict(False, certain, reason, remedy)


def unsure(reason, remedy=""):
    """The verdict that an operation may well map, for all that is known."""
    return Verdict(True, False, reason, remedy)


def _beyond(limit, remedy):
    return cpu(f"documented limit exceeded: {limit}", remedy, certain=False)


_REFUSED_VERSIONS = {
    "CONV_2D": 6,
    "TRANSPOSE_CONV": 4,
    "QUANTIZE": 3,
    "EXP": 2,
    "REVERSE_V2": 3,
}
_OLDER = {
    "CONV_2D": f"Grouped convolutions can be written in older form. {_TARGET}",
    "EXP": "Use softmax, sigmoid or tanh: for ELU tfc.replace_activations(model, "
    '{"elu": "relu6"}), for softplus {"softplus": "relu6"}.',
    "QUANTIZE": f"Use one scale for each activation. {_EXPORT}",
    "REVERSE_V2": "Reverse outside the model.",
    "TRANSPOSE_CONV": f"Its activation can be an operation of its own. {_TARGET}",
}
# Operators that TensorFlow Lite has had since 2022 only (they are not registered in
# TensorFlow 2.8); the compiler is of 2021.
_LATER_OPERATORS = {
    "ATAN2",
    "BITCAST",
    "BITWISE_XOR",
    "DILATE",
    "DYNAMIC_UPDATE_SLICE",
    "GELU",
    "REDUCE_WINDOW",
    "RELU_0_TO_1",
    "RIGHT_SHIFT",
    "SIGN",
    "UNSORTED_SEGMENT_MAX",
    "UNSORTED_SEGMENT_MIN",
    "UNSORTED_SEGMENT_PROD",
    "UNSORTED_SEGMENT_SUM",
}
_KNOWN_CUSTOM = ("TFLite_Detection_PostProcess", "PosenetDecoderOp")
# What `edgetpu_form` writes in an older version, however new the converter's is.
_LOWERED = ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_OLDER_CONVERTER = "Replace it, or convert the model with an older TensorFlow."


def file_refusal(file):
    """The verdict for all operations if the file as a whole is refused, else None."""
    if not any(_is_quantized(op) for op in file.operations):
        return cpu("nothing in the file is quantized to 8 bits", _EXPORT)
    for op in file.operations:
        if op.version >= _REFUSED_VERSIONS.get(op.operator, math.inf):
            return cpu(
                f"the compiler refuses the file: it does not know {op.operator} "
                f"version {op.version} (operation {op.index})",
                _OLDER[op.operator],
            )
        if op.operator in _LATER_OPERATORS or op.operator.startswith("STABLEHLO_"):
            return cpu(
                "the compiler is older than the operator, and refuses the file: "
                f"{op.operator} (operation {op.index})",
                _REPLACEMENTS.get(op.operator, _LAST),
                certain=False,
            )
        if op.custom and op.operator not in _KNOWN_CUSTOM:
            return cpu(
                f"the compiler refuses custom operations it does not know: "
                f"{op.operator} (operation {op.index})",
                "Express it in builtin operations, or run it outside the file.",
                certain=False,
            )
    return None


def _is_quantized(op):
    return any(
        t is not None and not t.constant and t.dtype in _INTEGERS
        for t in (*op.inputs, *op.outputs)
    )


def judge(op, file_inputs):
    """The most severe verdict on an operation, whatever surrounds it."""
    if op.custom:
        return cpu("custom operations run on the CPU", _LAST)
    rule = _RULES.get(op.operator)
    if rule is None:
        reason = "not among the operations of the Edge TPU"
        return cpu(reason, _REPLACEMENTS.get(op.operator, _LAST))
    worst = _fixed_sizes(op, file_inputs)
    for limit in (_types, _rank, _constants, _version, *rule.limits):
        worst = min(worst, limit(op) or worst, key=lambda verdict: verdict.order)
        if worst.order == (False, False):
            break  # The limits further on rely on what the earlier ones ask for.
    return worst


def _fixed_sizes(op, file_inputs):
    read = {tensor.index for tensor in op.inputs if tensor is not None}
    for tensor in file_inputs:
        # A dynamic batch is stored, and compiled, as 1. A 1 in height or width looks
        # like another dynamic size, yet may be what the model really has.
        if tensor.dynamic and tensor.index in read and 1 in tensor.shape[1:-1]:
            return unsure(
                f"input stored as {tensor.shape}: sizes must be known when compiling",
                "Give keras.Input a fixed shape.",
            )
    return Verdict(True, True)


def _types(op):
    for tensor in (*op.inputs, *op.outputs):
        if tensor is None or tensor.dtype in _INTEGERS:
            continue
        if tensor.constant and tensor.dtype == "INT32":
            continue
        if op.operator == "QUANTIZE":
            remedy = "Export with integer inputs; keep float operations out."
        else:
            remedy = _EXPORT if tensor.dtype in FLOAT_TYPES else _LAST
        return cpu(f"works on {tensor.dtype}, not int8 or uint8", remedy)


def _rank(op):
    for tensor in (*op.inputs, *op.outputs):
        if tensor is None or tensor.constant:
            continue
        if not tensor.shape or any(size > 1 for size in tensor.shape[:-3]):
            return cpu(
                f"shape {tensor.shape}: only the three innermost sizes may exceed 1",
                "Use batch size 1 and at most three other dimensions.",
            )


def _constants(op):
    for position in _RULES[op.operator].constants:
        tensor = op.inputs[position] if position < len(op.inputs) else None
        if tensor is not None and not tensor.constant:
            return cpu(
                f"input {position} ({tensor.name!r}) is computed: weights and "
                "parameters must be constants",
                "Fix the batch size and shapes: keras.Input(shape, batch_size=1).",
            )


def _version(op):
    seen = _RULES[op.operator].version
    if seen is None:
        return unsure("documented, but not seen in a compiled file")
    if op.version > seen:
        return cpu(
            f"version {op.version}: the highest seen mapped is {seen}",
            _TARGET if op.operator in _LOWERED else _OLDER_CONVERTER,
            certain=False,
        )


def _value(op, position):
    """A constant input, flat; None if it is absent."""
    tensor = op.inputs[position] if position < len(op.inputs) else None
    value = None if tensor is None else tensor.value()
    return None if value is None else value.ravel()


def _axes(op, position=1):
    axes = _value(op, position)
    rank = len(op.inputs[0].shape)
    return set() if axes is None else {int(axis) % max(rank, 1) for axis in axes}


def _not_fused(op):
    if op.options.get("fusedActivationFunction"):
        return _beyond(
            "no fused activation", "Put the activation in a layer of its own."
        )


def _equal_dilation(op):
    height = op.options.get("dilationHFactor", 1)
    width = op.options.get("dilationWFactor", 1)
    if height != width:
        return _beyond(
            f"dilation {height}x{width} differs in x and y", "Use equal dilation rates."
        )


def _concatenated_constant(op):
    constants = [t for t in op.inputs if t.constant]
    if not constants:
        return None
    zero = constants[0].zero_point
    zeros = np.all(constants[0].value() == (0 if zero is None else zero[0]))
    if len(op.inputs) != 2 or not zeros:
        return _beyond(
            "a constant may only be concatenated to one tensor, and must be zeros",
            "Add the constant outside the model.",
        )


def _default_weights_format(op):
    if op.options.get("weightsFormat"):
        return _beyond("only the default weights format", _EXPORT)


def _one_row(op):
    shape = op.outputs[0].shape
    if any(size > 1 for size in shape[:-1]):
        return _beyond(
            f"output {shape} has more than one row",
            f"A 1x1 convolution computes the same. {_TARGET}",
        )


def _small_softmax(op):
    shape = op.outputs[0].shape
    if any(size > 1 for size in shape[:-1]):
        return unsure(f"documented limit exceeded: {shape} has more than one row")
    if shape[-1] > 16_000:
        return unsure(f"documented limit exceeded: {shape[-1]} > 16000 elements")


def _keeps_batch(op):
    if 0 in _axes(op):
        return _beyond("works along the batch dimension", _BATCH)


def _mean_of_channels(op):
    shape = op.inputs[0].shape
    if len(shape) == 4 and 3 in _axes(op) and shape[3] % 4:
        return _beyond(
            f"mean over {shape[3]} channels", "Use a multiple of 4 channels."
        )


def _split_keeps_batch(op):
    axis, shape = _value(op, 0), op.inputs[1].shape
    if axis is not None and axis[0] % len(shape) == 0:
        return _beyond("splits the batch dimension", _BATCH)


def _pack_keeps_batch(op):
    if op.options.get("axis", 0) % len(op.outputs[0].shape) == 0:
        return _beyond("stacks along the batch dimension", _BATCH)


def _pads_no_batch(op):
    paddings = _value(op, 1)
    if paddings is not None and len(op.inputs[0].shape) > 3 and any(paddings[:2]):
        return _beyond("pads the batch dimension", _BATCH)


def _alpha_of_channels(op):
    shape = op.inputs[1].shape
    if any(size > 1 for size in shape[:-1]):
        return _beyond(
            f"alpha of shape {shape}", "Use keras.layers.PReLU(shared_axes=[1, 2])."
        )


def _small_reshape(op):
    # Coral names no number; this one separates ordinary flattening from the detection
    # heads that compilers were seen to leave on the CPU.
    size = op.inputs[0].size
    if size > 2**16:
        return unsure(f"reshapes {size} elements: large ones may not map")


def _small_resize(op):
    source, target = op.inputs[0].shape, op.outputs[0].shape
    factor = max(t / s for s, t in zip(source[1:3], target[1:3], strict=True))
    if factor > 2:
        return Verdict(
            op.operator == "RESIZE_NEAREST_NEIGHBOR",
            False,
            f"enlarges by {factor:g}: up to 2 was seen mapped, 16 and 33 were not",
            "Enlarge in steps of 2, or after the model.",
        )
    if op.outputs[0].size > 2**16:
        return unsure("large resizes may stay on the CPU for precision")


def _unit_strides(op):
    strides = _value(op, 3)
    if strides is not None and np.any(strides != 1):
        return cpu(
            f"strides {strides.tolist()}: only 1 is possible, and version 16 of the "
            "compiler may abort",
            "Use a strided convolution, pooling or a reshape instead.",
        )
    if op.options.get("ellipsisMask") or op.options.get("newAxisMask"):
        return _beyond(
            "slices with an ellipsis or a new axis", "Slice each axis by numbers."
        )


def _transposes_vary(op):
    return unsure("some transposes map, others do not; no rule is known")


def _undocumented(op):
    return unsure("not documented, but was seen mapped")


def _builtin_lstm(op):
    return cpu("only the LSTM operation is documented", _LAST, certain=False)


@dataclass(frozen=True)
class _Rule:
    """What is known of an operator.

    `version` is the highest seen mapped (None: never seen); `constants` are the
    inputs that must be constant; `limits` are the functions above.
    """

    version: int | None = 2
    constants: tuple = ()
    limits: tuple = ()


_REDUCTION = {"constants": (1,), "limits": (_keeps_batch,)}
_RESIZE = _Rule(3, constants=(1,), limits=(_small_resize,))
_RULES = {
    "ADD": _Rule(),
    "AVERAGE_POOL_2D": _Rule(limits=(_not_fused,)),
    "CONCATENATION": _Rule(limits=(_not_fused, _concatenated_constant)),
    "CONV_2D": _Rule(3, (1, 2), (_equal_dilation,)),
    "DEPTHWISE_CONV_2D": _Rule(3, (1, 2), (_equal_dilation,)),
    "EXPAND_DIMS": _Rule(None, (1,)),
    "FULLY_CONNECTED": _Rule(4, (1, 2), (_default_weights_format, _one_row)),
    "L2_NORMALIZATION": _Rule(),
    "LOGISTIC": _Rule(),
    "LSTM": _Rule(1),
    "MAXIMUM": _Rule(),
    "MAX_POOL_2D": _Rule(limits=(_not_fused,)),
    "MEAN": _Rule(2, (1,), (_keeps_batch, _mean_of_channels)),
    "MINIMUM": _Rule(),
    "MUL": _Rule(),
    "PACK": _Rule(limits=(_pack_keeps_batch,)),
    "PAD": _Rule(2, (1,), (_pads_no_batch,)),
    "PRELU": _Rule(1, (1,), (_alpha_of_channels,)),
    "QUANTIZE": _Rule(),
    "REDUCE_MAX": _Rule(None, **_REDUCTION),
    "REDUCE_MIN": _Rule(None, **_REDUCTION),
    "RELU": _Rule(),
    "RELU6": _Rule(None),
    "RELU_N1_TO_1": _Rule(None),
    "RESHAPE": _Rule(1, (1,), (_small_reshape,)),
    "RESIZE_BILINEAR": _RESIZE,
    "RESIZE_NEAREST_NEIGHBOR": _RESIZE,
    "RSQRT": _Rule(),
    "SLICE": _Rule(2, (1, 2)),
    "SOFTMAX": _Rule(limits=(_small_softmax,)),
    "SPACE_TO_DEPTH": _Rule(None),
    "SPLIT": _Rule(2, (0,), (_split_keeps_batch,)),
    "SQUARED_DIFFERENCE": _Rule(),
    "SQUEEZE": _Rule(None),
    "STRIDED_SLICE": _Rule(2, (1, 2, 3), (_unit_strides,)),
    "SUB": _Rule(),
    "SUM": _Rule(2, **_REDUCTION),
    "TANH": _Rule(),
    "TILE": _Rule(1, (1,), (_undocumented,)),
    "TRANSPOSE": _Rule(2, (1,), (_transposes_vary,)),
    "TRANSPOSE_CONV": _Rule(None, (0, 1, 3)),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _Rule(None, limits=(_builtin_lstm,)),
}
_RELU = "Replace it: tfc.replace_activations(model, {{{0!r}: 'relu6'}})."
_REPLACEMENTS = {
    "ARG_MAX": "Take the arg max outside the file.",
    "BATCH_MATMUL": "Use Dense or Conv2D layers: weights must be constants; attention "
    "can run after the model.",
    "DEPTH_TO_SPACE": "Use UpSampling2D or Resizing instead.",
    "DEQUANTIZE": "Export with integer outputs; keep float operations out.",
    "DIV": "Multiply by the reciprocal constant.",
    "ELU": _RELU.format("elu"),
    "EXP": "Use softmax, sigmoid or tanh, or compute it outside the file.",
    "GATHER": "Use slices, or gather outside the file.",
    "GELU": _RELU.format("gelu"),
    "HARD_SWISH": _RELU.format("hard_silu"),
    "LEAKY_RELU": "Replace it: tfc.replace_activations(model, "
    "{'leaky_relu': 'relu'}), or by PReLU(shared_axes=[1, 2]).",
    "SHAPE": "Fix the batch size and shapes: keras.Input(shape, batch_size=1).",
    "UNPACK": "Use SPLIT (keras.ops.split), which maps.",
}
