"""Turns converted ONNX graphs with fake quantization into ones of integers.

Example:
    ```python
    plain, weights = export_graph_and_weights(qat)
    count = store_integer_weights(converted, weights)    # int8 kernels and their scales
    drop_absorbed_relus(converted)
    ```
"""

import collections

import numpy as np

# Operator -> axis of its constant kernel that counts the outputs.
_OUTPUT_AXES = {"Conv": 0, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}
_WEIGHT_LIMIT = 127
# How far, in steps, a value may lie off its grid: float32 rounding of folded weights.
_ON_GRID = 1e-3


def store_integer_weights(converted, grids):
    """Replaces kernels that lie on a grid by int8 constants and their scales.

    Kernels are found by what they hold, for TensorFlow numbers the names of layers as
    it likes. Kernels that are not among `grids` stay float, but for factors of a
    normalization: one weight for each output, which no grid changes.

    Args:
        converted: ONNX model, changed in place.
        grids: List of the `ExportedWeight`s of the graph it was converted from, with
            symmetric grids of 8 bits or less.

    Returns:
        Number of constants stored so.

    Raises:
        ValueError: If a weight is not in the graph, or does not lie on its grid.
    """
    from onnx import numpy_helper

    graph = converted.graph
    constants = {c.name: c for c in graph.initializer}
    # What the graph itself rounds is integer already.
    sought = [_Sought(w) for w in grids if w.channel_axes and not w.in_graph]
    done = {}
    for node in [n for n in graph.node if n.op_type in _OUTPUT_AXES]:
        name = node.input[1]
        if name not in constants:
            # A product of two activations, such as the scores of attention.
            continue
        if name not in done:
            kernel = numpy_helper.to_array(constants[name])
            weights = _matching(kernel, sought)
            axis = _output_axis(node, kernel)
            if weights:
                integers, scale = _on_grid(kernel, axis, weights)
            elif kernel.size == kernel.shape[axis]:
                integers, scale = _one_each(kernel)
            else:
                continue
            done[name] = _stored(graph, name, integers, scale, axis)
            graph.initializer.remove(constants[name])
        node.input[1] = f"{name}_float"
    _check_found(sought)
    for position, node in enumerate(done.values()):
        graph.node.insert(position, node)
    return len(done)


class _Sought:
    """A weight, and its values in an order that no layout changes."""

    def __init__(self, weight):
        self.weight = weight
        self.values = np.sort(weight.values, axis=None)
        self.found = False


def _matching(kernel, sought):
    """The weights whose values a constant holds; mostly one, or none."""
    candidates = [s for s in sought if s.values.size == kernel.size]
    if not candidates:
        return []
    values = np.sort(kernel, axis=None)
    equal = [s for s in candidates if np.array_equal(s.values, values)]
    for same in equal:
        # Constants that are equal are stored once.
        same.found = True
    return [s.weight for s in equal]


def _check_found(sought):
    missing = [s.weight.name for s in sought if not s.found]
    if missing:
        raise ValueError(
            f"The kernel(s) of {len(missing)} quantized layer(s) are no constants of "
            f"the converted ONNX graph, and cannot be stored as integers: {missing}. "
            "Leave those layers float by tfc.Rule(..., quantize=False), or write "
            "TFLite: tfc.export_tflite."
        )


def _stored(graph, name, integers, scale, axis):
    """Adds the constants of a kernel; returns the node that makes it float again."""
    from onnx import helper, numpy_helper

    parts = {
        f"{name}_int8": integers,
        f"{name}_scale": scale,
        f"{name}_zero": np.zeros(scale.shape, np.int8),
    }
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in parts.items())
    return helper.make_node(
        "DequantizeLinear",
        list(parts),
        [f"{name}_float"],
        f"{name}_dequantize",
        **({"axis": axis} if scale.ndim else {}),
    )


def _output_axis(node, kernel):
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    axis = _OUTPUT_AXES[node.op_type] - transposed
    return axis % kernel.ndim


def _on_grid(kernel, axis, weights):
    """Integers of a kernel, and its scale: a scalar, or one for each output.

    Args:
        kernel: Float array as ONNX lays it out.
        axis: Its axis that counts the outputs.
        weights: The weights with the same values; of all zeros there may be several,
            of other shapes.
    """
    for weight in weights:
        step = np.asarray(weight.step, np.float64).ravel()
        if step.size not in (1, kernel.shape[axis]):
            continue
        scale = np.where(step > 0, step, 1.0)
        shape = [1] * kernel.ndim
        shape[axis] = -1
        steps = kernel / scale.reshape(shape)
        integers = np.round(steps)
        off = np.abs(steps - integers).max()
        if off <= _ON_GRID and np.abs(integers).max() < 2 ** (weight.bits - 1):
            scale = scale[0] if scale.size == 1 else scale
            return integers.astype(np.int8), np.asarray(scale, np.float32)
    raise ValueError(
        f"The kernel of layer {weights[0].name!r} does not lie on its grid of "
        f"{weights[0].bits} bits in the ONNX layout {kernel.shape}, outputs along axis "
        f"{axis}."
    )


def _one_each(kernel):
    """The same of the factors of a normalization: the only weight of an output.

    With a scale of its own nothing is lost by rounding it.
    """
    scale = np.abs(kernel).ravel() / _WEIGHT_LIMIT
    scale[scale == 0] = 1.0
    return (np.sign(kernel) * _WEIGHT_LIMIT).astype(np.int8), scale.astype(np.float32)


def drop_absorbed_relus(converted):
    """Takes out each Relu whose readers quantize to integers that start at zero.

    Rounding to an unsigned integer that stands for zero at 0 clips below zero itself,
    so that the values stay the same to the bit; ONNX Runtime leaves such a Relu out
    too, and the new engine of OpenCV 5.0 fails on an Add with one behind it.

    Args:
        converted: ONNX model, changed in place.

    Returns:
        Number of operations that were taken out.
    """
    from onnx import numpy_helper

    graph = converted.graph
    zeros = {
        c.name
        for c in graph.initializer
        if not numpy_helper.to_array(c).any() and _unsigned(c)
    }
    readers = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    kept = {output.name for output in graph.output}
    found = [
        node
        for node in graph.node
        if node.op_type == "Relu"
        and node.output[0] not in kept
        and all(_clips(reader, zeros) for reader in readers[node.output[0]])
    ]
    for node in found:
        for reader in readers[node.output[0]]:
            reader.input[0] = node.input[0]
        graph.node.remove(node)
    return len(found)


def _unsigned(constant):
    from onnx import TensorProto

    return constant.data_type in (TensorProto.UINT8, TensorProto.UINT16)


def _clips(node, zeros):
    return (
        node.op_type == "QuantizeLinear"
        and len(node.input) == 3
        and node.input[2] in zeros
    )
