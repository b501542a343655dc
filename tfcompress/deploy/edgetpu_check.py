"""Predicts what the Edge TPU compiler will map of a `.tflite` file, and why not.

Needs no compiler. The rules are Coral's documented ones, corrected by what real
compiler runs were seen to map; where neither decides, `certain` is False.

Example:
    ```python
    check = check_edgetpu("model.tflite")
    print(check)                                    # a table, one row an operation
    [op.reason for op in check.operations if not op.mapped]
    ```
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tfcompress.deploy.tflite_file import FLOAT_TYPES, read_tflite

COMPILED_OPERATOR = "edgetpu-custom-op"
_EXPORT = 'Export it with tfc.export_tflite(model, path, kind="int8").'
_LAST = "Replace it, or let it run after the model."
_INTEGERS = ("INT8", "UINT8")


@dataclass(frozen=True)
class MappedOperation:
    """What is expected of one operation.

    Attributes:
        index: Position in the file.
        operator: TFLite's name, `"CONV_2D"`; of a custom operation, its own name.
        mapped: Whether it is expected to run on the Edge TPU.
        certain: False where neither the documentation nor compiled files decide.
        reason: Why it stays on the CPU or is uncertain; empty when surely mapped.
        remedy: What to do about `reason`; empty where there is nothing to do.
    """

    index: int
    operator: str
    mapped: bool
    certain: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class EdgeTPUCheck:
    """The expected mapping of a file; printed, it is a table.

    Attributes:
        path: Path of the file.
        operations: One `MappedOperation` per TFLite operation, in file order.
    """

    path: str
    operations: tuple

    @property
    def mapped_count(self):
        """Number of operations expected on the Edge TPU."""
        return sum(op.mapped for op in self.operations)

    @property
    def cpu_count(self):
        """Number of operations expected on the CPU."""
        return len(self.operations) - self.mapped_count

    @property
    def fully_mapped(self):
        """Whether there are operations and all are expected on the Edge TPU."""
        return bool(self.operations) and self.cpu_count == 0

    def __str__(self):
        total = len(self.operations)
        unsure = sum(not op.certain for op in self.operations)
        title = f"{self.path}: {self.mapped_count} of {total} operations map"
        title += f" ({unsure} uncertain, marked ?)" if unsure else ""
        rows = [("#", "operator", "where", "reason", "remedy")]
        for op in self.operations:
            where = ("Edge TPU" if op.mapped else "CPU") + ("" if op.certain else " ?")
            rows.append((str(op.index), op.operator, where, op.reason, op.remedy))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join([title, *(line.rstrip() for line in lines)])


def check_edgetpu(path):
    """Predicts which operations of a file the Edge TPU compiler maps.

    Args:
        path: Path of a `.tflite` file, not yet compiled for the Edge TPU.

    Returns:
        An `EdgeTPUCheck`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no TFLite model, or compiled already.

    Reference:
        https://www.coral.ai/docs/edgetpu/models-intro/ (operations, requirements);
        the division into CPU and Edge TPU parts is TFLite's for delegates,
        `PartitionGraphIntoIndependentNodeSubsets` in its `graph_info.cc`.
    """
    return check_file(read_tflite(path))


def check_file(file):
    """`check_edgetpu` for a file that is read already.

    Args:
        file: A `TFLiteFile`.

    Returns:
        An `EdgeTPUCheck`.

    Raises:
        ValueError: If the file is compiled already.
    """
    if any(op.operator == COMPILED_OPERATOR for op in file.operations):
        raise ValueError(
            f"{file.path!r} is compiled for the Edge TPU already: it contains "
            f"{COMPILED_OPERATOR!r}. Pass the .tflite file it was compiled from."
        )
    refusal = _file_refusal(file)
    if refusal:
        verdicts = [refusal] * len(file.operations)
    else:
        verdicts = [_verdict(op, file.inputs) for op in file.operations]
        verdicts = _follow_dependencies(file, verdicts)
    return EdgeTPUCheck(
        path=file.path,
        operations=tuple(
            MappedOperation(op.index, op.operator, *verdict)
            for op, verdict in zip(file.operations, verdicts, strict=True)
        ),
    )


class _Verdict(NamedTuple):
    """As in `MappedOperation`; a certain CPU verdict is the most severe."""

    mapped: bool
    certain: bool
    reason: str = ""
    remedy: str = ""

    @property
    def order(self):
        return self.mapped, self.mapped == self.certain


def _cpu(reason, remedy, certain=True):
    return _Verdict(False, certain, reason, remedy)


def _unsure(reason, remedy=""):
    return _Verdict(True, False, reason, remedy)


def _beyond(limit, remedy=""):
    return _cpu(f"documented limit exceeded: {limit}", remedy, certain=False)


_REFUSED_VERSIONS = {
    "CONV_2D": 6,
    "TRANSPOSE_CONV": 4,
    "QUANTIZE": 3,
    "EXP": 2,
    "REVERSE_V2": 3,
}
_KNOWN_CUSTOM = ("TFLite_Detection_PostProcess", "PosenetDecoderOp")
_OLDER_VERSION = "Convert with an older TensorFlow, which writes an older version."


def _file_refusal(file):
    """The verdict for all operations if the file as a whole is refused, else None."""
    if not any(_is_quantized(op) for op in file.operations):
        return _cpu("nothing in the file is quantized to 8 bits", _EXPORT)
    for op in file.operations:
        if op.version >= _REFUSED_VERSIONS.get(op.operator, math.inf):
            return _cpu(
                f"the compiler refuses the file: it does not know {op.operator} "
                f"version {op.version} (operation {op.index})",
                _OLDER_VERSION,
            )
        if op.custom and op.operator not in _KNOWN_CUSTOM:
            return _cpu(
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


def _verdict(op, file_inputs):
    """The most severe verdict on an operation, whatever surrounds it."""
    if op.custom:
        return _cpu("custom operations run on the CPU", _LAST)
    rule = _RULES.get(op.operator)
    if rule is None:
        reason = "not among the operations of the Edge TPU"
        return _cpu(reason, _REPLACEMENTS.get(op.operator, _LAST))
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
            return _unsure(
                f"input stored as {tensor.shape}: sizes must be known when compiling",
                "Give keras.Input a fixed shape.",
            )
    return _Verdict(True, True)


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
        return _cpu(f"works on {tensor.dtype}, not int8 or uint8", remedy)


def _rank(op):
    for tensor in (*op.inputs, *op.outputs):
        if tensor is None or tensor.constant:
            continue
        if not tensor.shape or any(size > 1 for size in tensor.shape[:-3]):
            return _cpu(
                f"shape {tensor.shape}: only the three innermost sizes may exceed 1",
                "Use batch size 1 and at most three other dimensions.",
            )


def _constants(op):
    for position in _RULES[op.operator].constants:
        tensor = op.inputs[position] if position < len(op.inputs) else None
        if tensor is not None and not tensor.constant:
            return _cpu(
                f"input {position} ({tensor.name!r}) is computed: weights and "
                "parameters must be constants",
                "Fix the batch size and shapes: keras.Input(shape, batch_size=1).",
            )


def _version(op):
    seen = _RULES[op.operator].version
    if seen is None:
        return _unsure("documented, but not seen in a compiled file")
    if op.version > seen:
        return _cpu(
            f"version {op.version}: the highest seen mapped is {seen}",
            _OLDER_VERSION,
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
            "Use a 1x1 convolution instead of Dense on several positions.",
        )


def _small_softmax(op):
    shape = op.outputs[0].shape
    if any(size > 1 for size in shape[:-1]):
        return _unsure(f"documented limit exceeded: {shape} has more than one row")
    if shape[-1] > 16_000:
        return _unsure(f"documented limit exceeded: {shape[-1]} > 16000 elements")


def _keeps_batch(op):
    if 0 in _axes(op):
        return _beyond("works along the batch dimension")


def _mean_of_channels(op):
    shape = op.inputs[0].shape
    if len(shape) == 4 and 3 in _axes(op) and shape[3] % 4:
        return _beyond(
            f"mean over {shape[3]} channels", "Use a multiple of 4 channels."
        )


def _split_keeps_batch(op):
    axis, shape = _value(op, 0), op.inputs[1].shape
    if axis is not None and axis[0] % len(shape) == 0:
        return _beyond("splits the batch dimension")


def _pack_keeps_batch(op):
    if op.options.get("axis", 0) % len(op.outputs[0].shape) == 0:
        return _beyond("stacks along the batch dimension")


def _pads_no_batch(op):
    paddings = _value(op, 1)
    if paddings is not None and len(op.inputs[0].shape) > 3 and any(paddings[:2]):
        return _beyond("pads the batch dimension")


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
        return _unsure(f"reshapes {size} elements: large ones may not map")


def _small_resize(op):
    source, target = op.inputs[0].shape, op.outputs[0].shape
    factor = max(t / s for s, t in zip(source[1:3], target[1:3], strict=True))
    if factor > 2:
        return _Verdict(
            op.operator == "RESIZE_NEAREST_NEIGHBOR",
            False,
            f"enlarges by {factor:g}: up to 2 was seen mapped, 16 and 33 were not",
            "Enlarge in steps of 2, or after the model.",
        )
    if op.outputs[0].size > 2**16:
        return _unsure("large resizes may stay on the CPU for precision")


def _unit_strides(op):
    strides = _value(op, 3)
    if strides is not None and np.any(strides != 1):
        return _cpu(
            f"strides {strides.tolist()}: only 1 is possible, and version 16 of the "
            "compiler may abort",
            "Use a strided convolution, pooling or a reshape instead.",
        )
    if op.options.get("ellipsisMask") or op.options.get("newAxisMask"):
        return _beyond("slices with an ellipsis or a new axis")


def _transposes_vary(op):
    return _unsure("some transposes map, others do not; no rule is known")


def _undocumented(op):
    return _unsure("not documented, but was seen mapped")


def _builtin_lstm(op):
    return _cpu("only the LSTM operation is documented", _LAST, certain=False)


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
_RELU = "Use ReLU, ReLU6 or PReLU(shared_axes=[1, 2]) instead."
_REPLACEMENTS = {
    "ARG_MAX": "Take the arg max outside the file.",
    "BATCH_MATMUL": "Use Dense or Conv2D layers: weights must be constants.",
    "DEQUANTIZE": "Export with integer outputs; keep float operations out.",
    "DIV": "Multiply by the reciprocal constant.",
    "ELU": _RELU,
    "EXP": "Use softmax, sigmoid or tanh, or compute it outside the file.",
    "GATHER": "Use slices, or gather outside the file.",
    "GELU": _RELU,
    "HARD_SWISH": _RELU,
    "LEAKY_RELU": _RELU,
    "SHAPE": "Fix the batch size and shapes: keras.Input(shape, batch_size=1).",
    "UNPACK": "Use SPLIT (keras.ops.split), which maps.",
}


def _follow_dependencies(file, verdicts):
    """Leaves on the CPU what cannot be part of the one Edge TPU subgraph.

    TFLite cuts the operations into parts, in turn all CPU and all Edge TPU; a part
    takes in whatever is ready. The compiler keeps the first Edge TPU part: a CPU part
    may precede it, and all that comes later stays on the CPU.
    """
    producer = {t.index: op.index for op in file.operations for t in op.outputs}
    needs = [
        {producer[t.index] for t in op.inputs if t is not None and t.index in producer}
        for op in file.operations
    ]
    before = set()
    part = _next_part(needs, verdicts, before)
    if part and not verdicts[min(part)].mapped:
        before = part
        part = _next_part(needs, verdicts, before)
    result, root = list(verdicts), {}
    for index, verdict in enumerate(verdicts):
        if not verdict.mapped:
            continue
        wanted = needs[index] - before
        if index not in part:
            causes = wanted - part
        elif verdict.certain:
            causes = {i for i in wanted if not result[i].certain}
        else:
            causes = set()
        if causes:
            # A certain cause settles it, whatever the uncertain ones turn out to be.
            cause = min(causes, key=lambda i: (not result[i].certain, i))
            cause = root[index] = root.get(cause, cause)
            result[index] = _caused_by(file.operations[cause], result[cause])
    return result


def _next_part(needs, verdicts, done):
    part = set()
    for index, verdict in enumerate(verdicts):
        if index in done or not needs[index] <= done | part:
            continue
        if not part or verdict.mapped == verdicts[min(part)].mapped:
            part.add(index)
    return part


def _caused_by(op, verdict):
    name = f"operation {op.index} {op.operator}"
    if verdict.mapped:
        return _unsure(f"depends on {name}, which may stay on the CPU")
    return _cpu(
        f"depends on {name}, which is on the CPU",
        f"Solve operation {op.index} first.",
        verdict.certain,
    )
