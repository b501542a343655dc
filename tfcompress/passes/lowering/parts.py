"""Builds the layers of which forms consist, with the weights they take over."""

import keras
from keras import layers

from tfcompress.graph import clone
from tfcompress.layers import Affine, Parameter


def built(layer, input_shape, weights, *, like):
    """Builds a layer and gives it weights.

    Args:
        layer: Keras layer, not built.
        input_shape: Shape to build it for.
        weights: Dict from the name of a weight to its array.
        like: Layer whose `trainable` it takes over.

    Returns:
        `layer`.
    """
    layer.build(tuple(input_shape))
    by_name = {v.name: v for v in layer.weights}
    for name, value in weights.items():
        by_name[name].assign(value)
    layer.trainable = like.trainable
    return layer


def dense(like, name, kernel, bias=None, **settings):
    """A Dense layer with the given weights.

    Args:
        like: The layer that it is part of, for dtype and `trainable`.
        name: Its name.
        kernel: Array of shape `(inputs, outputs)`.
        bias: Array of shape `(outputs,)`, or `None` for none.
        **settings: Further arguments of `keras.layers.Dense`.
    """
    layer = layers.Dense(
        kernel.shape[1],
        use_bias=bias is not None,
        name=name,
        dtype=like.dtype_policy,
        **settings,
    )
    weights = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
    return built(layer, (None, kernel.shape[0]), weights, like=like)


def affine(like, name, scale=None, shift=None, *, trainable=None):
    """An `Affine` with arrays of shape `(channels,)`, of which one may be `None`."""
    layer = Affine(
        use_scale=scale is not None,
        use_shift=shift is not None,
        name=name,
        dtype=like.dtype_policy,
    )
    weights = {"scale": scale, "shift": shift}
    given = {k: v for k, v in weights.items() if v is not None}
    channels = len(next(iter(given.values())))
    layer = built(layer, (None, channels), given, like=like)
    if trainable is not None:
        layer.trainable = trainable
    return layer


def parameter(like, name, value, *, trainable=True):
    """A `Parameter` with the given array."""
    layer = Parameter(value.shape, name=name, dtype=like.dtype_policy)
    layer.value.assign(value)
    layer.trainable = like.trainable and trainable
    return layer


def regularizer(layer, name):
    """A copy of a regularizer of a layer, for a part of it."""
    found = getattr(layer, f"{name}_regularizer", None)
    return keras.regularizers.deserialize(keras.regularizers.serialize(found))


def activated(x, function, name):
    """Applies an activation as a layer of its own; `linear` is none."""
    if function is None or getattr(function, "__name__", "") == "linear":
        return x
    if isinstance(function, layers.Layer):
        return clone(function)(x)
    return layers.Activation(function, name=name)(x)


def numpy(variable):
    """The value of a variable as float32."""
    return variable.numpy().astype("float32")
