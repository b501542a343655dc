"""Normalization layers from means, products and an inverse root."""

import keras
import numpy as np
from keras import layers, ops

from tfcompress.passes.lowering import parts


def normalized(x, axes, epsilon, *, centered=True):
    """`(x - mean) / sqrt(variance + epsilon)` over `axes`, without division."""
    distance = x
    if centered:
        distance = x - ops.mean(x, axis=axes, keepdims=True)
    variance = ops.mean(distance * distance, axis=axes, keepdims=True)
    return distance * ops.rsqrt(variance + epsilon)


def layer_normalization(layer):
    """Form of LayerNormalization over the last axis or the last few."""
    axes = _axes(layer)
    centered = not layer.rms_scaling
    finish = _scale_and_shift(
        layer, layer.gamma, layer.beta if centered else None, axes
    )
    return lambda x: finish(normalized(x, axes, layer.epsilon, centered=centered))


def rms_normalization(layer):
    """Form of RMSNormalization."""
    axes = _axes(layer)
    finish = _scale_and_shift(layer, layer.scale, None, axes)
    return lambda x: finish(normalized(x, axes, layer.epsilon, centered=False))


def group_normalization(layer):
    """Form of GroupNormalization over the last axis."""
    rank = len(layer.get_build_config()["input_shape"])
    if layer.axis not in (-1, rank - 1):
        return None
    finish = _scale_and_shift(layer, layer.gamma, layer.beta, [-1])

    def form(x):
        channels = x.shape[-1]
        groups = channels if layer.groups == -1 else layer.groups
        y = ops.reshape(x, (-1, *x.shape[1:-1], groups, channels // groups))
        axes = [*range(1, rank - 1), rank]
        y = normalized(y, axes, layer.epsilon)
        return finish(ops.reshape(y, (-1, *x.shape[1:])))

    return form


def unit_normalization(layer):
    """Form of UnitNormalization: division by the L2 norm."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]

    def form(x):
        total = ops.sum(x * x, axis=list(axes), keepdims=True)
        return x * ops.rsqrt(ops.maximum(total, 1e-12))

    return form


def layer_norm_operation(operation):
    """Form of `ops.layer_normalization`."""
    axes = _as_list(operation.axis)
    epsilon = operation.epsilon or keras.config.epsilon()

    def form(x, gamma=None, beta=None):
        y = normalized(x, axes, epsilon, centered=not operation.rms_scaling)
        y = y if gamma is None else y * gamma
        return y if beta is None else y + beta

    return form


def rms_norm_operation(operation):
    """Form of `ops.rms_normalization`."""
    axes = _as_list(operation.axis)
    epsilon = operation.epsilon or keras.config.epsilon()

    def form(x, scale=None):
        y = normalized(x, axes, epsilon, centered=False)
        return y if scale is None else y * scale

    return form


def _scale_and_shift(layer, scale, shift, axes):
    """What follows: an affine layer over the last axis, or products over several."""
    if scale is None and shift is None:
        return lambda x: x
    values = [None if v is None else parts.numpy(v) for v in (scale, shift)]
    if len(axes) == 1:
        return parts.affine(layer, f"{layer.name}_affine", *values)
    weights = [
        None if v is None else parts.parameter(layer, f"{layer.name}_{n}", v)
        for n, v in zip(("scale", "shift"), values, strict=True)
    ]

    def form(x):
        y = x if weights[0] is None else x * weights[0](x)
        return y if weights[1] is None else y + weights[1](x)

    return form


def _axes(layer):
    rank = len(layer.get_build_config()["input_shape"])
    return sorted(axis % rank - rank for axis in _as_list(layer.axis))


def _as_list(axis):
    return list(axis) if isinstance(axis, (list, tuple)) else [axis]


def rescaling(layer):
    """Form of Rescaling: an affine layer with constants."""
    return _constant_affine(layer, layer.scale, layer.offset)


def normalization(layer):
    """Form of Normalization over the last axis: an affine layer with constants."""
    rank = len(layer.get_build_config()["input_shape"])
    axes = _as_list(layer.axis) if layer.axis is not None else []
    if layer.invert or any(axis % rank != rank - 1 for axis in axes):
        return None
    deviation = np.maximum(
        np.sqrt(np.asarray(layer.variance, "float32")), keras.config.epsilon()
    )
    mean = np.asarray(layer.mean, "float32")
    return _constant_affine(
        layer, np.ravel(1.0 / deviation), np.ravel(-mean / deviation)
    )


def _constant_affine(layer, scale, shift):
    made = []

    def form(x):
        if not made:
            channels = x.shape[-1]
            values = [
                np.broadcast_to(np.ravel(np.asarray(v, "float32")), (channels,))
                for v in (scale, shift)
            ]
            made.append(
                parts.affine(layer, f"{layer.name}_affine", *values, trainable=False)
            )
        return made[0](x)

    return form


LAYERS = {
    layers.LayerNormalization: layer_normalization,
    layers.RMSNormalization: rms_normalization,
    layers.GroupNormalization: group_normalization,
    layers.UnitNormalization: unit_normalization,
    layers.Rescaling: rescaling,
    layers.Normalization: normalization,
}

OPERATIONS = {"LayerNorm": layer_norm_operation, "RMSNorm": rms_norm_operation}
