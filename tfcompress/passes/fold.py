"""Folding: fewer layers that compute the same at inference.

Example:
    ```python
    smaller = tfc.fold(model)   # no batch normalization, no dropout, merged kernels
    ```
"""

import keras
import numpy as np
from keras import layers

from tfcompress.graph import Graph, activation_name, rewrite, unchanged
from tfcompress.passes import surgery
from tfcompress.passes.export_graph import scale_and_shift
from tfcompress.passes.folded_layers import (
    LINEAR,
    ends_linear,
    merged,
    scaled_input,
    scaled_output,
)
from tfcompress.passes.surgery import Change
from tfcompress.selection import select

# What hands on its input at inference.
_IDENTITIES = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)


def fold(model, *, include=None, exclude=None, return_report=False):
    """Returns a model of fewer layers that computes the same at inference.

    - Dropout, noise, `Identity` and linear `Activation` layers go.
    - Batch normalization goes into the kernel before it (Conv1D to 3D, depthwise,
      separable and transposed convolutions, Dense, EinsumDense), or into the one behind
      it where that pads with no zeros.
    - Dense layers, and convolutions of which one is 1x1, with nothing between them
      become one, unless that has more parameters, or more that are not zero.

    It is exact but for the rounding of floats. A layer that is called several times, or
    whose output something else reads, keeps its kernel; batch normalization and dropout
    that were called with `training=True` stay. Folded for deployment: a model that
    trains on misses what regularized it.

    Args:
        model: Built `keras.Model`. It is not changed; nested
            models are inlined.
        include: Pattern or patterns of layer names; only changes among layers that
            match are made. `None` is all.
        exclude: Pattern or patterns of layer names to leave as they are.
        return_report: Whether to return the report as well.

    Returns:
        A new `keras.Model`; with `return_report` a pair of it and a `SurgeryReport`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it is not built or is wrapped, the `call` of a subclassed one
            cannot be recorded, or a pattern matches nothing.

    Reference:
        Jacob et al., 2017, section 3.2, eq. 14. arXiv:1712.05877
    """
    graph = before = surgery.opened(model, verb="fold")
    names = [call.operation.name for call in graph.calls]
    chosen = set(select(names, include=include, exclude=exclude))
    changes, folded = [], None
    for rule in (_identity, _normalization, _merge):
        while True:
            plan = _Plan(graph, chosen)
            for call in graph.calls:
                rule(plan, call)
            if not plan.changes:
                break
            folded = rewrite(graph, plan)
            graph = Graph(folded)
            changes += plan.changes
            chosen |= plan.names
    if folded is None:
        folded = rewrite(graph, unchanged)
    return surgery.closed("fold", before, folded, changes, return_report)


class _Plan:
    """Which calls go and which layers are replaced, in one walk over the graph.

    Attributes:
        changes: List of `Change`.
        names: New names that layers got.
    """

    def __init__(self, graph, chosen):
        self.graph = graph
        self.chosen = chosen
        self.calls = surgery.number_of_calls(graph)
        self.dropped = set()
        self.replaced = {}
        self.changes = []
        self.names = set()

    def drop(self, call):
        """Hands on the input of a call instead."""
        self.dropped.add(id(call))
        self._note(call, "removed", [call.operation], None)

    def join(self, gone, kept, layer, what):
        """Drops one call and puts `layer` in the place of the other."""
        self.dropped.add(id(gone))
        self.replaced[id(kept)] = layer
        self.names.add(layer.name)
        self._note(kept, what, [gone.operation, kept.operation], layer)

    def _note(self, call, what, old, new):
        self.changes.append(
            Change(
                call.operation.name,
                what,
                sum(o.count_params() for o in old),
                0 if new is None else new.count_params(),
            )
        )

    def free(self, call):
        """Whether a call is chosen and nothing was planned for it yet."""
        planned = id(call) in self.dropped or id(call) in self.replaced
        return call.operation.name in self.chosen and not planned

    def kernel(self, call):
        """Whether it is the only call of a kernel that may change."""
        return (
            call is not None
            and type(call.operation) in LINEAR
            and surgery.has_plain_kernel(call.operation)
            and self.calls[id(call.operation)] == 1
            and self.free(call)
        )

    def __call__(self, call, clone, args, kwargs):
        if id(call) in self.dropped:
            return surgery.first_tensor(args, kwargs)
        layer = self.replaced.get(id(call))
        return (layer or clone(call.operation))(*args, **kwargs)


def _identity(plan, call):
    operation = call.operation
    linear = type(operation) is layers.Activation and (
        activation_name(operation) == "linear"
    )
    if not (type(operation) in _IDENTITIES or linear) or not plan.free(call):
        return
    # A linear activation is how models of half precision return to float32.
    casts = call.input_tensors[0].dtype != call.outputs[0].dtype
    if casts or surgery.forced_training(call) or _names_an_output(plan.graph, call):
        return
    plan.drop(call)


def _names_an_output(graph, call):
    """Whether losses and metrics may know an output by the name of the layer."""
    several = isinstance(graph.outputs_struct, (list, tuple)) and len(graph.outputs) > 1
    return several and graph.is_output(call.outputs[0])


def _normalization(plan, call):
    normalization = call.operation
    plain = type(normalization) is layers.BatchNormalization
    if not plain or not plan.free(call) or surgery.forced_training(call):
        return
    if not _into_kernel_before(plan, call):
        _into_kernel_behind(plan, call)


def _into_kernel_before(plan, call):
    tensor = call.input_tensors[0]
    kernel = plan.graph.producer(tensor)
    if plan.graph.only_consumer(tensor) is not call or not plan.kernel(kernel):
        return False
    if not ends_linear(kernel.operation):
        return False
    layer = scaled_output(
        kernel.operation,
        *scale_and_shift(call.operation),
        axis=call.operation.axis,
        rank=len(tensor.shape),
        # The name of an output is the name of the layer that computes it.
        name=call.operation.name if plan.graph.is_output(call.outputs[0]) else None,
    )
    if layer is None:
        return False
    plan.join(call, kernel, layer, f"took in {call.operation.name}, which follows")
    return True


def _into_kernel_behind(plan, call):
    kernel = plan.graph.only_consumer(call.outputs[0])
    if not plan.kernel(kernel) or call.input_tensors[0].dtype != call.outputs[0].dtype:
        return
    layer = scaled_input(
        kernel.operation,
        *scale_and_shift(call.operation),
        axis=call.operation.axis,
        rank=len(call.outputs[0].shape),
    )
    if layer is not None:
        plan.join(call, kernel, layer, f"took in {call.operation.name}, which precedes")


def _merge(plan, call):
    if not plan.kernel(call) or not ends_linear(call.operation):
        return
    following = plan.graph.only_consumer(call.outputs[0])
    if not plan.kernel(following):
        return
    first, second = call.operation, following.operation
    layer = merged(first, second)
    if layer is None or any(
        size(layer) > size(first) + size(second)
        for size in (keras.layers.Layer.count_params, _nonzero)
    ):
        return
    plan.join(call, following, layer, f"merged with {first.name}")


def _nonzero(layer):
    """Number of parameters with the zeros of a pruned kernel left out."""
    return sum(
        np.count_nonzero(v.numpy())
        if len(v.shape) > 1
        else v.value.shape.num_elements()
        for v in layer.weights
    )
