"""One operation of a `.tflite` file as a file of its own, to run and time it alone.

Example:
    ```python
    model = parsed(content)
    files = [alone(model, index) for index in range(len(model.subgraphs[0].operators))]
    ```
"""

import copy

import numpy as np

from tfcompress.deploy.tflite_file import schema, serialized

# What is neither a value nor copied: it lives as long as the interpreter.
_STATEFUL_TYPES = ("RESOURCE", "VARIANT", "STRING")


def alone(model, index, *, shapes=None):
    """The file of a single operation of the main subgraph.

    Its inputs are those of the operation that the file computes, in order; constants
    stay.

    Args:
        model: What `tflite_file.parsed` returned. It stays as it is.
        index: Number of the operation.
        shapes: Dict from number of a tensor to its shape when the file ran, where that
            is another than the file says.

    Returns:
        Bytes, or `None` where the operation cannot stand alone: it runs another
        subgraph, or keeps a state.
    """
    graph = model.subgraphs[0]
    operation = copy.copy(graph.operators[index])
    used = [i for i in _all(operation) if i >= 0]
    if _runs_a_subgraph(operation) or any(_stateful(graph.tensors[i]) for i in used):
        return None
    numbers = {old: new for new, old in enumerate(dict.fromkeys(used))}
    formats = schema()
    small = copy.copy(model)
    small.operatorCodes = [model.operatorCodes[operation.opcodeIndex]]
    small.signatureDefs, small.metadata, small.metadataBuffer = None, None, None
    small.buffers = [formats.BufferT()]
    part = formats.SubGraphT()
    part.name = "main"
    part.tensors = [
        _tensor(model, small, graph.tensors[old], (shapes or {}).get(old))
        for old in numbers
    ]
    computed = [i for i in _ints(operation.inputs) if i >= 0]
    computed = [i for i in dict.fromkeys(computed) if not _constant(model, graph, i)]
    part.inputs = np.array([numbers[i] for i in computed], np.int32)
    part.outputs = np.array([numbers[i] for i in _ints(operation.outputs)], np.int32)
    operation.opcodeIndex = 0
    for name in ("inputs", "outputs", "intermediates"):
        moved = [numbers.get(i, -1) for i in _ints(getattr(operation, name))]
        setattr(operation, name, np.array(moved, np.int32) if moved else None)
    part.operators = [operation]
    small.subgraphs = [part]
    return serialized(small)


def computed_inputs(model, index):
    """Numbers of the tensors that are the inputs of `alone(model, index)`."""
    graph = model.subgraphs[0]
    numbers = [i for i in _ints(graph.operators[index].inputs) if i >= 0]
    return [i for i in dict.fromkeys(numbers) if not _constant(model, graph, i)]


def _tensor(model, small, tensor, shape):
    tensor = copy.copy(tensor)
    data = model.buffers[tensor.buffer].data
    if data is None:
        tensor.buffer = 0
    else:
        small.buffers.append(model.buffers[tensor.buffer])
        tensor.buffer = len(small.buffers) - 1
    tensor.shapeSignature = None
    if shape is not None:
        tensor.shape = np.array(shape, np.int32)
    return tensor


def _constant(model, graph, index):
    data = model.buffers[graph.tensors[index].buffer].data
    return data is not None and len(data) > 0


def _stateful(tensor):
    types = schema().TensorType
    return tensor.isVariable or tensor.type in [
        getattr(types, n) for n in _STATEFUL_TYPES
    ]


def _runs_a_subgraph(operation):
    names = vars(operation.builtinOptions or operation).keys()
    more = getattr(operation, "builtinOptions2", None)
    names = [*names, *(vars(more).keys() if more is not None else ())]
    return any("ubgraph" in name.lower() for name in names)


def _all(operation):
    return [
        *_ints(operation.inputs),
        *_ints(operation.outputs),
        *_ints(operation.intermediates),
    ]


def _ints(array):
    return [] if array is None else [int(i) for i in array]
