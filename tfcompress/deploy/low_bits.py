"""Stores trained low-bit weights exactly, packed where the runtime reads that.

The converter rounds every kernel to int8 with `scale = max|w| / 127`. A kernel trained
on another grid, say 4 bits or a learned step, then no longer lies on it: the integer 1
of 7 becomes 18 of 127. Here such a kernel gets its own integers and its own scale back,
the bias of the operation follows, and what has 4 bits or less can be stored two values
a byte.

Example:
    ```python
    content, stored = store_low_bits(content, [(layer.kernel.numpy(), 4)])
    print(stored)   # 12 of 4 bits (12 packed)
    ```
"""

import collections
import copy
import functools
import math
from dataclasses import dataclass, field

import numpy as np

from tfcompress.deploy.tflite_file import pack_int4, parsed, schema, serialized
from tfcompress.passes.exported_weights import spread

# How far, in steps, a value may lie off its grid: float32 rounding of folded weights.
_ON_GRID = 1e-3

# The converter's own rounding, in its steps, and float32 rounding on top.
_ROUNDING = 0.5 + 1e-2

# Largest integer of a bias: as the converter limits it, and beside packed weights,
# where XNNPACK computes with 16 times the integers and overflowed at 2**30.
_MOST, _MOST_PACKED = 2**30, 2**24

# Operator -> places of input, weight and bias among its inputs.
_WITH_BIAS = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}

_DENSE = ("FULLY_CONNECTED",)

# Operators that compute with the scale of every operand, so one may change alone.
_ANY_SCALE = ("ADD", "BATCH_MATMUL", "MUL", "PRELU", "SUB")

# (Operator, type of the activations) -> version from which it takes packed 4 bits.
_PACKED_SINCE = {
    ("CONV_2D", "INT8"): 7,
    ("DEPTHWISE_CONV_2D", "INT8"): 7,
    ("FULLY_CONNECTED", "INT8"): 10,
    ("FULLY_CONNECTED", "INT16"): 13,
}


@dataclass(frozen=True)
class StoredWeights:
    """How low-bit weights lie in a file.

    Attributes:
        tensors: Dict from bits to the number of tensors.
        packed: Dict from bits to how many of those hold two values a byte.
    """

    tensors: dict = field(default_factory=dict)
    packed: dict = field(default_factory=dict)

    def __str__(self):
        parts = []
        for bits, count in sorted(self.tensors.items()):
            packed = f" ({self.packed.get(bits, 0)} packed)" if bits <= 4 else ""
            parts.append(f"{count} of {bits} bits{packed}")
        return ", ".join(parts) or "none"


def store_low_bits(content, kernels, *, pack=True, one_scale=False):
    """Gives the weights of an integer `.tflite` file the grid they were trained on.

    Weights are found by what they hold, not by name: a tensor belongs to a kernel if
    its values are the kernel's, rounded to the tensor's step. A kernel may be in
    several tensors, and a tensor may be read by several operations.

    Args:
        content: Bytes of the file, as the converter made it.
        kernels: Pairs `(values, bits)` or triples `(values, bits, step)`: float array
            as Keras holds it, the width of its symmetric grid, 2 to 8, and the distance
            of the grid's values, an array that broadcasts to `values`. Without a step
            it is found from the values; it may differ from channel to channel.
        pack: Whether to store 4 bits or less two values a byte, where the runtime
            takes that: `"dense"` only what fully connected layers alone read, `True`
            convolutions too, which LiteRT computes several times slower so. What is
            not packed stays int8, on the same grid.
        one_scale: Whether to give each kernel of the file one scale, as old readers
            need it. What does not lie on one grid and is not among `kernels`, such as
            the factors of a normalization, is rounded to one.

    Returns:
        Bytes of the new file, and a `StoredWeights`.

    Raises:
        ValueError: If a kernel is not in the file, does not lie on its grid, or is
            read by an operation whose output depends on the old scale.
    """
    model = parsed(content)
    kernels = [_Kernel.of(*kernel) for kernel in kernels]
    found, counts = set(), (collections.Counter(), collections.Counter())
    for graph in model.subgraphs:
        for index, kernel in _matches(model, graph, kernels, found).items():
            packed = _Weight(model, graph, index).store(kernel, pack, one_scale)
            counts[0][kernel.bits] += 1
            counts[1][kernel.bits] += packed
        for index in range(len(graph.tensors)) if one_scale else ():
            _Weight(model, graph, index).unite_scales()
    _check_found(kernels, found)
    return serialized(model, len(content)), StoredWeights(*map(dict, counts))


def grid(values, bits, *, step=None, axis=None, stored_bits=None):
    """Integers and scale of values that lie on a symmetric grid.

    Args:
        values: Float array, any shape.
        bits: Width of the integers of the grid, 2 to 8.
        step: Distance of the grid's values, an array that broadcasts to `values` and
            differs along `axis` at most; `None` to find the largest that fits.
        axis: Axis that has a scale for each index; `None` for one scale.
        stored_bits: Width of the integers to return, `bits` or more. What it leaves
            free is used: the grid's integers are multiplied by the largest power of two
            that fits, and the scale is divided by it.

    Returns:
        int8 array of the shape of `values`, and float32 array of scales. A channel of
        zeros has scale 0.

    Raises:
        ValueError: If the values do not lie on such a grid.
    """
    axes = tuple(a for a in range(values.ndim) if a != axis)
    wide = values.astype(np.float64)
    limit = np.abs(wide).max(axis=axes, keepdims=True)
    if step is None:
        levels = _levels(wide / np.where(limit > 0, limit, 1), _highest(bits), axes)
        step = limit / np.maximum(levels, 1)
        wrong = levels == 0
    else:
        all_steps = np.broadcast_to(np.asarray(step, np.float64), values.shape)
        step = all_steps.max(axis=axes, keepdims=True)
        wrong = all_steps.min(axis=axes, keepdims=True) < (1 - 1e-6) * step
    step = np.where(limit > 0, step, 0)
    integers = wide / np.where(step > 0, step, 1)
    off = np.abs(integers - np.round(integers)).max(axis=axes, keepdims=True)
    wrong |= (off > _ON_GRID) | (limit > (_highest(bits) + _ON_GRID) * step)
    if wrong.any():
        raise ValueError(
            f"A weight of shape {values.shape} does not lie on a symmetric grid of "
            f"{bits} bits: {np.count_nonzero(wrong)} of {wrong.size} scale(s) "
            "cannot be found. Pass the weight the model computes with, and export "
            "with scales along the axis it was trained with."
        )
    factor = spread(bits, stored_bits or bits)
    scale = (step / factor).astype(np.float32)
    return (np.round(integers) * factor).astype(np.int8), scale.ravel()


def _levels(unit, highest, axes):
    """Largest integer of each scale's grid, at most `highest`; 0 where none fits."""
    levels = np.zeros([1 if a in axes else n for a, n in enumerate(unit.shape)], int)
    for count in range(highest, 0, -1):
        off = np.abs(unit * count - np.round(unit * count))
        fits = off.max(axis=axes, keepdims=True) < _ON_GRID
        levels = np.where((levels == 0) & fits, count, levels)
    return levels


def _highest(bits):
    return 2 ** (bits - 1) - 1


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A trained kernel, in Keras' layout or in the file's."""

    values: np.ndarray
    bits: int
    steps: np.ndarray | None = None

    @classmethod
    def of(cls, values, bits, step=None):
        """The kernel of what the user passed."""
        if not 2 <= bits <= 8:
            raise ValueError(f"`bits` must be 2 to 8. Received: bits={bits}")
        values = np.asarray(values, np.float32)
        return cls(
            values, bits, None if step is None else np.broadcast_to(step, values.shape)
        )

    @functools.cached_property
    def layouts(self):
        """The flat orders of the values in which TFLite may hold it."""
        return [order.ravel() for order in _orders(self.values)]

    def laid_out(self, number, shape):
        """The kernel in one of the orders."""
        steps = self.steps
        if steps is not None:
            steps = _orders(steps)[number].reshape(shape)
        return _Kernel(self.layouts[number].reshape(shape), self.bits, steps)


def _orders(array):
    """An array as it is, and with its axes in the orders that TFLite has.

    As it is (gather, depthwise), with the last axes first (convolution, fully
    connected, einsum), or with the last but one first (transposed convolution).
    """
    rank = array.ndim
    orders = [
        np.moveaxis(array, range(k, rank), range(rank - k)) for k in range(1, rank)
    ]
    return [array, *orders, *([np.moveaxis(array, -2, 0)] if rank > 2 else [])]


def _matches(model, graph, kernels, found):
    """Dict from the index of a tensor to its kernel, laid out as the tensor is."""
    matches = {}
    for index, tensor in enumerate(graph.tensors):
        values, step = _dequantized(model, tensor)
        if values is None:
            continue
        near = [
            (distance, number, order)
            for number, kernel in enumerate(kernels)
            if kernel.values.size == values.size
            for order, layout in enumerate(kernel.layouts)
            for distance in [_distance(layout.reshape(values.shape), values, step)]
            if distance is not None
        ]
        if near:
            found.update(number for _, number, _ in near)
            _, number, order = min(near)
            matches[index] = kernels[number].laid_out(order, values.shape)
    return matches


def _dequantized(model, tensor):
    """Real values of a constant int8 tensor and its steps; `(None, None)` of others."""
    data = model.buffers[tensor.buffer].data
    scale = getattr(tensor.quantization, "scale", None)
    if tensor.type != schema().TensorType.INT8 or data is None or scale is None:
        return None, None
    if len(data) != math.prod(tensor.shape) or not len(scale):
        return None, None
    shape = [1] * len(tensor.shape)
    if len(scale) > 1:
        shape[tensor.quantization.quantizedDimension] = -1
    step = np.asarray(scale, np.float64).reshape(shape)
    zero = np.asarray(tensor.quantization.zeroPoint).reshape(shape)
    integers = np.frombuffer(bytes(data), np.int8).reshape(tensor.shape)
    return (integers - zero) * step, step


def _distance(kernel, values, step):
    """How far the tensor's largest values lie from the kernel's, in steps.

    The converter rounds all values but the largest, which tell kernels apart that are
    nearly equal.

    Returns:
        Float, or `None` if the tensor is not the rounded kernel.
    """
    if not np.all(np.abs(kernel - values) <= _ROUNDING * step):
        return None
    largest = np.abs(values) >= 126.5 * step
    return float(np.max(np.abs(kernel - values) / step, where=largest, initial=0))


def _check_found(kernels, found):
    missing = [k for number, k in enumerate(kernels) if number not in found]
    if missing:
        shapes = ", ".join(f"{k.values.shape} of {k.bits} bits" for k in missing[:5])
        raise ValueError(
            f"{len(missing)} of {len(kernels)} low-bit kernel(s) are not in the file "
            f"as int8 constants: {shapes}. Pass each as the model computes with it at "
            "export, batch normalization folded in."
        )


class _Weight:
    """A constant tensor of the file, with the operations that read it."""

    def __init__(self, model, graph, index):
        self.model = model
        self.graph = graph
        self.index = index
        self.tensor = graph.tensors[index]
        self.readers = [op for op in graph.operators if index in op.inputs]
        scale = getattr(self.tensor.quantization, "scale", None)
        self.old_scale = np.asarray([] if scale is None else scale, np.float64)

    def unite_scales(self):
        """Rounds a kernel with several scales to one."""
        values, _ = _dequantized(self.model, self.tensor)
        if values is None or self.old_scale.size < 2 or not self.readers:
            return
        step = np.abs(values).max() / _highest(8) or self.old_scale.max()
        rounded = np.round(values / step) * step
        kernel = _Kernel(rounded, 8, np.full(values.shape, step))
        self.store(kernel, pack=False, one_scale=True)

    def store(self, kernel, pack, one_scale=False):
        """Writes the kernel's integers and scale; returns whether packed."""
        packed = kernel.bits <= 4 and self._takes_packed(pack)
        axis, shape = None, [1] * kernel.values.ndim
        if self.old_scale.size > 1 and not one_scale:
            axis = self.tensor.quantization.quantizedDimension
            shape[axis] = -1
        _, scale = grid(
            kernel.values,
            kernel.bits,
            step=kernel.steps,
            axis=axis,
            stored_bits=4 if packed else 8,
        )
        # A channel of zeros keeps its scale, and with it its bias.
        old, least = self.old_scale, self._least_scale(packed)
        if scale.size == 1:
            old, least = old.max(keepdims=True), least.max(keepdims=True)
        scale = np.where(scale > 0, scale, old)
        scale = np.maximum(scale, least).astype(np.float32)
        self._check_readers(scale)
        integers = np.round(kernel.values / scale.reshape(shape)).astype(np.int8)
        self._store_biases(scale)
        self.tensor.quantization.scale = scale
        self.tensor.quantization.zeroPoint = np.zeros(scale.size, np.int64)
        if packed:
            self.tensor.type = schema().TensorType.INT4
            for reader in self.readers:
                self._raise_version(reader)
        self._write(self.tensor, pack_int4(integers) if packed else integers)
        return packed

    def _least_scale(self, packed):
        """Scale below which a bias would leave its integers, as the converter has it.

        Only channels whose weights are next to nothing beside their bias come near.
        """
        least, most = np.zeros(1), _MOST_PACKED if packed else _MOST
        for reader in self.readers:
            bias, _ = self._bias(reader)
            if bias is not None:
                share = np.abs(self._integers(self.graph.tensors[bias]) / most)
                if self.old_scale.size == 1:
                    share = share.max(keepdims=True)
                least = np.maximum(least, share * self.old_scale)
        return least

    def _check_readers(self, scale):
        other = {self._operator(op) for op in self.readers if not self._may_change(op)}
        if other and not np.allclose(scale, self.old_scale, rtol=1e-6, atol=0):
            raise ValueError(
                f"{', '.join(sorted(other))} read(s) a low-bit weight of shape "
                f"{tuple(self.tensor.shape)}, and passes its scale on: the weight's "
                f"grid has {_few(scale)}, the file {_few(self.old_scale)}. Export it "
                "with activations on the weight's grid, or train it with 8 bits."
            )

    def _may_change(self, reader):
        operator = self._operator(reader)
        if operator in _WITH_BIAS:
            place = _WITH_BIAS[operator][1]
            return [int(i) for i in reader.inputs].index(self.index) == place
        return operator in _ANY_SCALE

    def _operator(self, operation):
        code = self.model.operatorCodes[operation.opcodeIndex]
        return _operator_name(max(code.builtinCode, code.deprecatedBuiltinCode))

    def _takes_packed(self, pack):
        allowed = _DENSE if pack == "dense" else _WITH_BIAS
        return bool(pack) and all(
            self._operator(reader) in allowed and self._packed_since(reader)
            for reader in self.readers
        )

    def _packed_since(self, reader):
        types = schema().TensorType
        activations = self.graph.tensors[reader.inputs[0]].type
        name = {types.INT8: "INT8", types.INT16: "INT16"}.get(activations)
        return _PACKED_SINCE.get((self._operator(reader), name))

    def _raise_version(self, reader):
        codes = self.model.operatorCodes
        old = codes[reader.opcodeIndex]
        version = max(old.version, self._packed_since(reader))
        for index, code in enumerate(codes):
            same = code.builtinCode == old.builtinCode and code.version == version
            if same:
                reader.opcodeIndex = index
                return
        new = schema().OperatorCodeT()
        vars(new).update(vars(old) | {"version": version})
        codes.append(new)
        reader.opcodeIndex = len(codes) - 1

    def _store_biases(self, scale):
        """Gives the bias of every reader the step that belongs to the new scale."""
        groups = collections.defaultdict(list)
        for reader in self.readers:
            bias, step = self._bias(reader)
            if bias is not None:
                groups[bias, step].append(reader)
        for (bias, step), readers in groups.items():
            self._store_bias(bias, readers, step * self.old_scale, step * scale)

    def _bias(self, reader):
        """Index of an integer bias and the step of the input; `(None, None)`."""
        places = _WITH_BIAS.get(self._operator(reader))
        if places is None or len(reader.inputs) <= places[2]:
            return None, None
        source, _, bias = (int(reader.inputs[place]) for place in places)
        step = getattr(self.graph.tensors[source].quantization, "scale", None)
        return (None, None) if bias < 0 or step is None else (bias, float(step[0]))

    def _store_bias(self, index, readers, old_step, new_step):
        """Rounds a bias to its new step; a copy of it, if others read it as well."""
        others = (op for op in self.graph.operators if op not in readers)
        bias = self.graph.tensors[index]
        if any(index in op.inputs for op in others):
            bias = copy.copy(bias)
            bias.quantization = copy.copy(bias.quantization)
            for reader in readers:
                added = len(self.graph.tensors)
                reader.inputs = [added if i == index else i for i in reader.inputs]
            self.graph.tensors.append(bias)
        old = self._integers(bias)
        self._write(bias, np.round(old * (old_step / new_step)).astype(old.dtype))
        bias.quantization.scale = np.asarray(new_step, np.float32)
        bias.quantization.zeroPoint = np.zeros(np.size(new_step), np.int64)

    def _integers(self, bias):
        wide = bias.type == schema().TensorType.INT64
        data = bytes(self.model.buffers[bias.buffer].data)
        return np.frombuffer(data, np.int64 if wide else np.int32)

    def _write(self, tensor, array):
        """Stores an array as the tensor's constant; no other tensor changes."""
        buffer = schema().BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        users = [
            t
            for g in self.model.subgraphs
            for t in g.tensors
            if t.buffer == tensor.buffer
        ]
        if len(users) > 1:
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        else:
            self.model.buffers[tensor.buffer] = buffer


def _few(scale):
    return f"scale {np.ravel(scale)[0]:.6g}" + (", ..." if np.size(scale) > 1 else "")


@functools.cache
def _operator_names():
    operators = vars(schema().BuiltinOperator)
    return {v: k for k, v in operators.items() if isinstance(v, int)}


def _operator_name(number):
    return _operator_names()[number]
