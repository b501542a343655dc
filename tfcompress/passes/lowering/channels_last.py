"""Models with channels first, computed with channels last, as TFLite computes them.

Where layers follow each other nothing is transposed between them: only what enters from
a tensor with channels first, and what leaves to an operation that reads axes.

Example:
    ```python
    model = channels_last(model)   # same inputs, outputs and weights
    ```
"""

import keras
from keras import layers

from tfcompress.graph import Graph, clone, copy_weights, rewrite
from tfcompress.passes import quantize_rules as rules

_NORMALIZATIONS = (*rules.NORMALIZATIONS, layers.GroupNormalization)
# Axis 1 is that of the channels where they came first before.
_OVER_AN_AXIS = (
    layers.Concatenate,
    layers.LayerNormalization,
    layers.RMSNormalization,
)
# Value by value, whatever the order of the axes.
_BY_VALUE = (
    layers.Add,
    layers.Average,
    layers.Dropout,
    layers.ELU,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.LeakyReLU,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.ReLU,
    layers.Subtract,
)
_OPERATIONS_BY_VALUE = (
    "Absolute",
    "Add",
    "Divide",
    "Exp",
    "Maximum",
    "Minimum",
    "Multiply",
    "Negative",
    "Sqrt",
    "Square",
    "Subtract",
    "TrueDivide",
)
_ACTIVATIONS_BY_VALUE = (
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
)


def channels_last(model):
    """Rewrites what has channels first.

    Args:
        model: Functional `keras.Model`.

    Returns:
        `model` itself if no layer has channels first; else a functional model with the
        same inputs and outputs and copies of its weights. In it layers with
        `data_format="channels_first"`, batch and group normalization over axis 1, and
        what reads their axis 1 after them, have channels last.
    """
    graph = Graph(model)
    if not any(_has_channels_first(call) for call in graph.calls):
        return model
    return rewrite(graph, _ChannelsLast(graph))


def _has_channels_first(call):
    operation = call.operation
    # Of some augmentations the format is that of all Keras.
    if getattr(operation, "data_format", None) == "channels_first":
        is_layer = isinstance(operation, layers.Layer)
        return is_layer and "data_format" in operation.get_config()
    return isinstance(operation, _NORMALIZATIONS) and _reads_axis_1(call)


def _reads_axis_1(call):
    rank = len(call.input_tensors[0].shape)
    axis = call.operation.axis
    if isinstance(axis, (list, tuple)) and len(axis) == 1:
        (axis,) = axis
    return rank > 2 and axis in (1, 1 - rank)


def _by_value(operation):
    if isinstance(operation, _BY_VALUE):
        return True
    if rules.activation(operation) in _ACTIVATIONS_BY_VALUE:
        return True
    plain = not isinstance(operation, layers.Layer)
    return plain and type(operation).__name__ in _OPERATIONS_BY_VALUE


class _ChannelsLast:
    """The visitor; it knows which tensors are transposes of which."""

    def __init__(self, graph):
        self.names = {call.operation.name for call in graph.calls}
        self.transposed = {}
        self.copies = {}

    def __call__(self, call, clone_once, args, kwargs):
        operation = call.operation
        changes = self._changes(call, args, kwargs)
        if changes is not None:
            copied = self._copy(operation, changes)
            outputs = self._computed(copied, call, args, kwargs)
            copy_weights(operation, copied)
            return outputs
        if _by_value(operation) and self._continues(call, args, kwargs):
            return self._computed(clone_once(operation), call, args, kwargs)
        return clone_once(operation)(*args, **kwargs)

    def _changes(self, call, args, kwargs):
        """The entries of its config that put channels last, or `None`."""
        operation = call.operation
        if _has_channels_first(call):
            first = getattr(operation, "data_format", None) == "channels_first"
            return {"data_format": "channels_last"} if first else {"axis": -1}
        if isinstance(operation, _OVER_AN_AXIS) and _reads_axis_1(call):
            return {"axis": -1} if self._continues(call, args, kwargs) else None
        return None

    def _copy(self, operation, changes):
        if operation.name not in self.copies:
            self.copies[operation.name] = clone(operation, **changes)
        return self.copies[operation.name]

    def _continues(self, call, args, kwargs):
        """Whether it has a transpose to go on from, and nothing of other axes."""
        given = keras.tree.flatten((args, kwargs))
        known = any(id(t) in self.transposed for t in given if _symbolic(t))
        return known and len({len(s) for s in map(_shape, given) if s}) == 1

    def _computed(self, operation, call, args, kwargs):
        """What an operation makes of the tensors with channels last."""
        name = call.operation.name
        args, kwargs = keras.tree.map_structure(
            lambda v: self._last(v, name) if _symbolic(v) else v, (args, kwargs)
        )
        output = operation(*args, **kwargs)
        return self._first(output, name, rank=len(call.outputs[0].shape))

    def _last(self, x, name):
        if id(x) not in self.transposed:
            axes = (*range(2, len(x.shape)), 1)
            y = layers.Permute(axes, name=self._new(f"{name}_channels_last"))(x)
            self.transposed[id(x)] = (x, y)
        return self.transposed[id(x)][1]

    def _first(self, y, name, rank):
        if rank < 3:  # Flattened or pooled away.
            return y
        # Nothing is computed if nobody reads it.
        axes = (rank - 1, *range(1, rank - 1))
        x = layers.Permute(axes, name=self._new(f"{name}_channels_first"))(y)
        self.transposed[id(x)] = (x, y)
        return x

    def _new(self, name):
        base, number = name, 1
        while name in self.names:
            number += 1
            name = f"{base}_{number}"
        self.names.add(name)
        return name


def _shape(value):
    return tuple(getattr(value, "shape", ()))


def _symbolic(value):
    return isinstance(value, keras.KerasTensor)
