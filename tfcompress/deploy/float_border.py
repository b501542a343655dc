"""Keeps float layers float between integer ones.

The converter turns a float kernel between rounded activations into integers, whatever
its layer was meant to be. An operation without an integer form in front of it prevents
that; once the file is made it is taken out again.

Example:
    ```python
    bordered, count = with_borders(plain, float_kernels(qat))
    content = without_borders(convert(bordered, 1, int8_settings("int8")), count)
    ```
"""

import tensorflow as tf
from keras import layers

from tfcompress.deploy.tflite_file import parsed, schema, serialized
from tfcompress.graph import Graph, rewrite
from tfcompress.layers import Parameter
from tfcompress.passes.quantize_rules import KERNELS

_NAME = "float_border"
_KERNELS = tuple(kind for kind in KERNELS if kind is not Parameter)


class _Border(layers.Layer):
    """A sine, which TFLite computes in float only."""

    def call(self, inputs):
        return tf.sin(inputs)


def float_kernels(model):
    """Names of the kernel layers that a quantization-aware model leaves float."""
    return {
        call.operation.name
        for call in Graph(model).calls
        if type(call.operation) in _KERNELS
    }


def with_borders(model, names):
    """Puts a border before each of some layers.

    Args:
        model: What `export_graph` returned.
        names: Names of layers.

    Returns:
        A new `keras.Model` and the number of borders; `model` and 0 if it has none of
        the layers.
    """
    graph, count = Graph(model), 0
    if not any(call.operation.name in names for call in graph.calls):
        return model, 0

    def visit(call, clone, args, kwargs):
        nonlocal count
        if call.operation.name in names:
            count += 1
            border = _Border(name=f"{_NAME}_{count}", dtype="float32")
            args = (border(args[0]), *args[1:])
        return clone(call.operation)(*args, **kwargs)

    return rewrite(graph, visit), count


def without_borders(content, count):
    """Takes the borders out of a file.

    Args:
        content: Bytes of the file, as the converter made it.
        count: How many borders there are.

    Returns:
        Bytes of the new file.

    Raises:
        ValueError: If there are more or fewer of them.
    """
    if not count:
        return content
    model, found = parsed(content), 0
    sine = schema().BuiltinOperator.SIN
    for graph in model.subgraphs:
        kept = []
        for operation in graph.operators:
            code = model.operatorCodes[operation.opcodeIndex]
            output = operation.outputs[0]
            named = _NAME.encode() in (graph.tensors[output].name or b"")
            if max(code.builtinCode, code.deprecatedBuiltinCode) != sine or not named:
                kept.append(operation)
                continue
            found += 1
            _redirect(graph, int(output), int(operation.inputs[0]))
        graph.operators = kept
    if found != count:
        raise ValueError(
            f"{found} of {count} float layer(s) can be told in the converted file. "
            "Leave the layers around them float as well, or quantize them."
        )
    return serialized(model, len(content))


def _redirect(graph, old, new):
    """Lets all that reads a tensor read another."""
    for operation in graph.operators:
        operation.inputs = [new if i == old else i for i in operation.inputs]
