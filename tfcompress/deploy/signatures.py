"""Inputs and outputs of a `.tflite` file in the order and with the names of the model.

The converter orders them as it likes, and numbers what Keras has names for.

Example:
    ```python
    content = with_signature(content, input_names(model), output_names(model))
    ```
"""

import re

import keras
import numpy as np

from tfcompress.deploy.tflite_file import parsed, serialized
from tfcompress.graph import Graph, functional, inputs_struct, symbolic_inputs
from tfcompress.layers import FakeQuant

_NUMBERED = re.compile(r"(?:input|output|args)_(\d+)")


def input_names(model):
    """Names of a model's inputs in Keras' order: keys of a dict, or of input layers."""
    names = [tensor.name for tensor in symbolic_inputs(model)]
    return _names(inputs_struct(model), names)


def output_names(model):
    """Names of a model's outputs in Keras' order: keys of a dict, or of the layers.

    Quantizers and activations that `quantize_aware` put behind a layer have its name.
    """
    if functional(model) is None:
        struct = model.outputs
        names = [f"output_{number}" for number in range(len(model.outputs))]
    else:
        graph = Graph(model)
        struct = graph.outputs_struct
        names = [_layer_name(graph, tensor) for tensor in graph.outputs]
    return _names(struct, names)


def _names(struct, names):
    """The keys of a structure of tensors, or else the names that were found."""
    paths = [path for path, _ in keras.tree.flatten_with_path(struct)]
    found = [
        "_".join(map(str, path)) if any(isinstance(key, str) for key in path) else name
        for path, name in zip(paths, names, strict=True)
    ]
    unique = []
    for name in found:
        number, base = 1, name
        while name in unique:
            name, number = f"{base}_{number}", number + 1
        unique.append(name)
    return unique


def _layer_name(graph, tensor):
    call = _rounded(graph, tensor)
    if call is None:
        return tensor.name
    name = call.operation.name
    before = _rounded(graph, call.input_tensors[0]) if call.input_tensors else None
    # `Dense(activation="softmax", name="classes")` becomes two layers.
    if before is not None and name.startswith(f"{before.operation.name}_"):
        rest = name.removeprefix(f"{before.operation.name}_")
        if rest == getattr(getattr(call.operation, "activation", None), "__name__", ""):
            return before.operation.name
    return name


def _rounded(graph, tensor):
    """The call that computes a tensor, past quantizers; `None` for an input."""
    call = graph.producer(tensor)
    while call is not None and isinstance(call.operation, FakeQuant):
        call = graph.producer(call.input_tensors[0])
    return call


def with_signature(content, inputs, outputs):
    """Orders and names the inputs and outputs of a file.

    Args:
        content: Bytes of the file, with a signature of `input_0`, `output_0` and so on.
        inputs: Names of the inputs in order.
        outputs: Names of the outputs in order.

    Returns:
        Bytes of the new file.

    Raises:
        ValueError: If the signature has not as many of them.
    """
    model = parsed(content)
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]
    signature.inputs, graph.inputs = _ordered(signature.inputs, inputs, "inputs")
    signature.outputs, graph.outputs = _ordered(signature.outputs, outputs, "outputs")
    return serialized(model, len(content))


def _ordered(entries, names, what):
    entries = sorted(entries, key=lambda entry: _number(entry.name.decode()))
    if len(entries) != len(names):
        raise ValueError(
            f"The converted file has {len(entries)} {what}, and the model "
            f"{len(names)}: {names}. An input that no output depends on is left out; "
            "build the model without it."
        )
    for entry, name in zip(entries, names, strict=True):
        entry.name = name.encode()
    return entries, np.array([entry.tensorIndex for entry in entries], np.int32)


def _number(name):
    return int(_NUMBERED.fullmatch(name)[1])


def signature_names(model):
    """Names of the inputs and outputs of a file, in its order.

    Args:
        model: What `tflite_file.parsed` returned.

    Returns:
        Two lists: names of the signature, or else of the tensors.
    """
    graph = model.subgraphs[0]
    signature = next(
        (s for s in model.signatureDefs or () if s.subgraphIndex == 0), None
    )
    lists = []
    for what in ("inputs", "outputs"):
        entries = getattr(signature, what, None) or ()
        names = {entry.tensorIndex: _text(entry.name) for entry in entries}
        lists.append(
            [
                names.get(index, _text(graph.tensors[index].name))
                for index in getattr(graph, what)
            ]
        )
    return lists


def _text(name):
    return (name or b"").decode(errors="replace")


def in_order(details, tensors):
    """The details of a signature's tensors in the order of the model.

    Args:
        details: Dict from name to the interpreter's details.
        tensors: Details of the same tensors in the order of the file.

    Returns:
        List of pairs `(name, details)`.
    """
    if all(_NUMBERED.fullmatch(name) for name in details):
        by_number = sorted(details.items(), key=lambda item: _number(item[0]))
        if [_number(name) for name, _ in by_number] == list(range(len(details))):
            # As other converters write them: the order of the file means nothing.
            return by_number
    place = {d["index"]: number for number, d in enumerate(tensors)}
    return sorted(details.items(), key=lambda item: place.get(item[1]["index"], 0))
