"""Turns converted ONNX graphs with fake quantization into ones of integers.

Example:
    ```python
    count = store_integer_weights(converted)    # int8 kernels, a scale per channel
    drop_absorbed_relus(converted)
    ```
"""

import collections

import numpy as np

_WEIGHT_LIMIT = 127


def store_integer_weights(converted):
    """Replaces float kernels on an int8 grid by int8 constants and their scales.

    Returns:
        Number of weights stored so.

    Raises:
        ValueError: If a kernel is not a constant on a grid of 255 values.
    """
    from onnx import helper, numpy_helper

    graph = converted.graph
    constants = {c.name: c for c in graph.initializer}
    done = {}
    for node in [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]:
        name = node.input[1]
        if name not in constants and node.op_type == "MatMul":
            # A product of two activations, such as the scores of attention.
            continue
        if name not in constants:
            raise ValueError(
                f"The kernel of ONNX node {node.name!r} ({node.op_type}) is computed, "
                "not constant, and cannot be stored as integers."
            )
        if name not in done:
            kernel = numpy_helper.to_array(constants[name])
            axis = _output_axis(node, kernel)
            integers, scale = _on_grid(kernel, axis, name)
            parts = {
                f"{name}_int8": integers,
                f"{name}_scale": scale,
                f"{name}_zero": np.zeros(len(scale), np.int8),
            }
            graph.initializer.extend(
                numpy_helper.from_array(a, n) for n, a in parts.items()
            )
            done[name] = helper.make_node(
                "DequantizeLinear",
                list(parts),
                [f"{name}_float"],
                f"{name}_dequantize",
                axis=axis,
            )
            graph.initializer.remove(constants[name])
        node.input[1] = f"{name}_float"
    for position, node in enumerate(done.values()):
        graph.node.insert(position, node)
    return len(done)


def _output_axis(node, kernel):
    if node.op_type == "Conv":
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return kernel.ndim - 2 if transposed else kernel.ndim - 1


def _on_grid(kernel, axis, name):
    others = tuple(a for a in range(kernel.ndim) if a != axis)
    scale = np.abs(kernel).max(axis=others) / _WEIGHT_LIMIT
    scale[scale == 0] = 1.0
    shape = [1] * kernel.ndim
    shape[axis] = -1
    steps = kernel / scale.reshape(shape)
    integers = np.round(steps)
    if np.abs(steps - integers).max() > 0.01:
        raise ValueError(f"The kernel {name!r} does not lie on a grid of 255 values.")
    return integers.astype(np.int8), scale.astype(np.float32)


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
