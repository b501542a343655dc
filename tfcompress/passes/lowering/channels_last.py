"""Models with channels first, computed with channels last, as TFLite computes them.

Where layers follow each other nothing is transposed between them: only what enters from
a tensor with channels first, and what leaves to an operation that reads axes.

Example:
    ```python
    model = channels_last(model)   # same inputs, outputs and weights
    ```
"""

import collections

import keras
import numpy as np
from keras import layers

from tfcompress.graph import Graph, clone, copy_weights, rewrite, unused_name
from tfcompress.passes import quantize_rules as rules

# With a `data_format`, of which axis 1 is that of the channels where they come first.
# (Of a ConvLSTM it is that of time.) Older versions of Keras have fewer of them.
_WITH_FORMAT = tuple(
    getattr(layers, name)
    for name in (
        *(f"Conv{rank}D{kind}" for rank in (1, 2, 3) for kind in ("", "Transpose")),
        *(
            f"{kind}Conv{rank}D"
            for kind in ("Depthwise", "Separable")
            for rank in (1, 2)
        ),
        *(
            f"{kind}{rank}D"
            for kind in (
                "AdaptiveAveragePooling",
                "AdaptiveMaxPooling",
                "AveragePooling",
                "Cropping",
                "GlobalAveragePooling",
                "GlobalMaxPooling",
                "MaxPooling",
                "SpatialDropout",
                "UpSampling",
                "ZeroPadding",
            )
            for rank in (1, 2, 3)
        ),
        "CenterCrop",
        "Flatten",
        "Resizing",
    )
    if hasattr(layers, name)
)
_NORMALIZATIONS = (*rules.NORMALIZATIONS, layers.GroupNormalization)
# Axis 1 is that of the channels where they came first before.
_OVER_AN_AXIS = (
    layers.Concatenate,
    layers.LayerNormalization,
    layers.PReLU,
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
    if type(operation) in _WITH_FORMAT:
        first = getattr(operation, "data_format", None) == "channels_first"
        return first and len(call.input_tensors[0].shape) > 2
    return type(operation) in _NORMALIZATIONS and _reads_axis_1(call)


def _reads_axis_1(call):
    rank = len(call.input_tensors[0].shape)
    axis = call.operation.axis
    if isinstance(axis, (list, tuple)) and len(axis) == 1:
        (axis,) = axis
    return rank > 2 and axis in (1, 1 - rank)


def _by_value(operation):
    if type(operation) in _BY_VALUE:
        return getattr(operation, "noise_shape", None) is None
    if rules.activation(operation) in _ACTIVATIONS_BY_VALUE:
        return True
    plain = not isinstance(operation, layers.Layer)
    return plain and type(operation).__name__ in _OPERATIONS_BY_VALUE


class _ChannelsLast:
    """The visitor; it knows which tensors are transposes of which."""

    def __init__(self, graph):
        self.names = {call.operation.name for call in graph.calls}
        counts = collections.Counter(id(call.operation) for call in graph.calls)
        self.shared = {key for key, count in counts.items() if count > 1}
        self.transposed = {}
        self.copies = {}

    def __call__(self, call, clone_once, args, kwargs):
        operation = call.operation
        if _has_channels_first(call):
            formatted = type(operation) in _WITH_FORMAT
            changes = {"data_format": "channels_last"} if formatted else {"axis": -1}
            return self._changed(call, changes, args, kwargs)
        if self._continues(call, args, kwargs):
            if _by_value(operation):
                return self._computed(clone_once(operation), call, args, kwargs)
            changes = self._changes_of_axis(call)
            if changes is not None:
                return self._changed(call, changes, args, kwargs)
        return clone_once(operation)(*args, **kwargs)

    def _changes_of_axis(self, call):
        """What makes it read the last axis in place of axis 1, or `None`."""
        operation = call.operation
        # Another call of it may read an axis 1 that is none of channels.
        if type(operation) not in _OVER_AN_AXIS or id(operation) in self.shared:
            return None
        if isinstance(operation, layers.PReLU):
            rank = len(call.input_tensors[0].shape)
            axes = operation.shared_axes or ()
            return {"shared_axes": [a - 1 if a > 1 else rank - 1 for a in axes]}
        return {"axis": -1} if _reads_axis_1(call) else None

    def _changed(self, call, changes, args, kwargs):
        operation = call.operation
        if operation.name not in self.copies:
            self.copies[operation.name] = clone(operation, **changes)
        copied = self.copies[operation.name]
        outputs = self._computed(copied, call, args, kwargs)
        if isinstance(operation, layers.PReLU):
            copied.alpha.assign(np.moveaxis(operation.alpha.numpy(), 0, -1))
            copied.trainable = operation.trainable
        else:
            copy_weights(operation, copied)
        return outputs

    def _continues(self, call, args, kwargs):
        """Whether it has a transpose to go on from, and nothing of another rank."""
        given = keras.tree.flatten((args, kwargs))
        if any(isinstance(v, keras.Variable) for v in given):
            return False
        known = any(id(t) in self.transposed for t in given if _symbolic(t))
        return known and len({_rank(v) for v in given if _rank(v)}) == 1

    def _computed(self, operation, call, args, kwargs):
        """What an operation makes of the tensors with channels last."""
        name = call.operation.name
        rank = len(call.input_tensors[0].shape)
        args, kwargs = keras.tree.map_structure(
            lambda v: self._last(v, name) if _rank(v) == rank else v, (args, kwargs)
        )
        output = operation(*args, **kwargs)
        return self._first(output, name, rank=len(call.outputs[0].shape))

    def _last(self, x, name):
        if not _symbolic(x):
            return np.moveaxis(keras.ops.convert_to_numpy(x), 1, -1)
        if id(x) not in self.transposed:
            axes = (*range(2, len(x.shape)), 1)
            self.transposed[id(x)] = (
                x,
                self._permuted(x, axes, f"{name}_channels_last"),
            )
        return self.transposed[id(x)][1]

    def _first(self, y, name, rank):
        if rank < 3:  # Flattened or pooled away.
            return y
        # Nothing is computed if nobody reads it.
        axes = (rank - 1, *range(1, rank - 1))
        x = self._permuted(y, axes, f"{name}_channels_first")
        self.transposed[id(x)] = (x, y)
        return x

    def _permuted(self, x, axes, name):
        return layers.Permute(axes, name=self._new(name), dtype=x.dtype)(x)

    def _new(self, name):
        name = unused_name(name, self.names)
        self.names.add(name)
        return name


def _rank(value):
    return len(getattr(value, "shape", ()))


def _symbolic(value):
    return isinstance(value, keras.KerasTensor)
