"""Finds the residual blocks of a model: what can go and leave the skip in its place.

Example:
    ```python
    blocks, others = residual_blocks(Graph(model))
    [block.name for block in blocks]   # names of the additions
    ```
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import layers

_NORMALIZATIONS = (
    layers.BatchNormalization,
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.RMSNormalization,
)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """An addition of a tensor and of what is computed from it alone.

    Attributes:
        addition: The call that adds.
        skip: Its input that is the block's input too.
        branch: Its other input.
        calls: The calls that compute `branch` from `skip`, in order of execution.
    """

    addition: Any
    skip: Any
    branch: Any
    calls: tuple

    @property
    def name(self):
        """Name of the addition."""
        return self.addition.operation.name


def residual_blocks(graph):
    """Finds the blocks whose branch can be dropped.

    Args:
        graph: `Graph` of a model without nested models.

    Returns:
        `(blocks, others)`: a list of `ResidualBlock` in order of execution, and a dict
        from the name of each other addition to the reason why it is none.
    """
    blocks, others = [], {}
    for call in graph.calls:
        if type(call.operation).__name__ != "Add":
            continue
        found = _block(graph, call)
        if isinstance(found, str):
            others[call.operation.name] = found
        else:
            blocks.append(found)
    return blocks, others


def _block(graph, call):
    """The block of an addition, or why it has none."""
    tensors = call.input_tensors
    if len(tensors) != 2 or tensors[0] is tensors[1]:
        return "does not add two tensors"
    if tuple(tensors[0].shape) != tuple(tensors[1].shape):
        return "adds tensors of different shapes"
    for skip, branch in (tensors, tensors[::-1]):
        inside = _calls_from(graph, skip, branch)
        if inside is None:
            continue
        calls = tuple(c for c in graph.calls if id(c) in inside)
        if not _self_contained(graph, calls, inside | {id(call)}):
            return "something else reads what its branch computes"
        return ResidualBlock(call, skip, branch, calls)
    return "neither input is computed from the other alone (no identity skip)"


def _calls_from(graph, skip, branch):
    """Ids of the calls that lead from `skip` to `branch`; `None` if others do too."""
    inside, waiting = set(), [branch]
    while waiting:
        tensor = waiting.pop()
        if tensor is skip:
            continue
        call = graph.producer(tensor)
        if call is None:
            return None
        if id(call) not in inside:
            inside.add(id(call))
            waiting.extend(call.input_tensors)
    return inside


def _self_contained(graph, calls, allowed):
    return all(
        not graph.is_output(tensor)
        and all(id(reader) in allowed for reader in graph.consumers(tensor))
        for call in calls
        for tensor in call.outputs
    )


def gain_of_weights(block):
    """How large the weights make the branch beside its input.

    The root mean square that white noise of size 1 would have behind the branch, were
    there no activations: every kernel multiplies it by its Frobenius norm over the
    root of its outputs, normalization sets it to the size of its gamma.

    Args:
        block: `ResidualBlock`.

    Returns:
        A float.
    """
    gain = 1.0
    for call in block.calls:
        operation = call.operation
        if not isinstance(operation, layers.Layer):
            continue
        if isinstance(operation, _NORMALIZATIONS):
            gain = 1.0
        for variable in operation.trainable_weights:
            gain *= _factor(operation, variable)
    return float(gain)


def _factor(layer, variable):
    value = variable.numpy().astype("float64")
    if variable.name in ("gamma", "scale"):
        return np.sqrt(np.mean(value**2))
    if value.ndim < 2 or variable.name.endswith("bias"):
        return 1.0
    outputs = value.shape[-1]
    if isinstance(layer, _DEPTHWISE):
        outputs *= value.shape[-2]
    return np.linalg.norm(value) / np.sqrt(outputs)
