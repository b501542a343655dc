"""Layers out of the factors of a kernel: what runs in the place of one layer.

Example:
    ```python
    first, second = factor_layers(dense, [Part(left), Part(right)], taken=names)
    y = second(first(x))   # `second` has the name, the bias and the activation
    ```
"""

from dataclasses import dataclass
from typing import Any

from keras import activations, layers, regularizers

from tfcompress.graph import clone, unused_name
from tfcompress.passes.lowering import parts

POINTWISE = {
    layers.Dense: layers.Dense,
    layers.Conv1D: layers.Conv1D,
    layers.Conv2D: layers.Conv2D,
    layers.Conv3D: layers.Conv3D,
}
_DEPTHWISE = {
    layers.Conv1D: layers.DepthwiseConv1D,
    layers.Conv2D: layers.DepthwiseConv2D,
}


@dataclass(frozen=True, eq=False)
class Part:
    """One layer to be.

    Attributes:
        kernel: Array `(in, out)` for a Dense layer, `(*spatial, in, out)` for a
            convolution, `(*spatial, in, multiplier)` for a depthwise one.
        depthwise: Whether it is depthwise.
        geometry: Axes, among the spatial ones, on which it has the strides and the
            dilation of the layer that it is part of.
    """

    kernel: Any
    depthwise: bool = False
    geometry: tuple = ()


def point(layer, matrix):
    """The part that mixes channels: a Dense layer or a 1x1 convolution.

    Args:
        layer: Layer in whose place it stands.
        matrix: Array of shape `(in, out)`.
    """
    rank = 0 if isinstance(layer, layers.Dense) else len(layer.kernel_size)
    return Part(matrix.reshape(*[1] * rank, *matrix.shape))


def whole(layer):
    """The `geometry` of a part that has all strides and dilation of the layer."""
    return tuple(range(len(getattr(layer, "kernel_size", ()))))


def number_of_parameters(found):
    """Number of weights in kernels of parts."""
    return sum(part.kernel.size for part in found)


def equal_strides(layer):
    """Whether a depthwise convolution can have the strides, as TensorFlow has them."""
    return len(set(layer.strides)) == 1


def factor_layers(layer, found, *, taken):
    """Builds one layer for each part.

    Bias and activation are the last one's, which keeps the name of the layer; the
    others have none and are called `<name>_factor1` and so on. The kernel's regularizer
    acts on every factor; a constraint of the kernel has no meaning for factors, and
    goes.

    Args:
        layer: Built Dense layer or convolution of one group.
        found: List of `Part`, in the order of execution.
        taken: Names that exist already; new ones are added.

    Returns:
        List of built layers with the weights of the parts.
    """
    made = []
    for number, part in enumerate(found, start=1):
        last = number == len(found)
        name = layer.name if last else _unique(f"{layer.name}_factor{number}", taken)
        made.append(_built(layer, part, name, last))
    return made


def _built(layer, part, name, last):
    kernel = part.kernel
    settings = {"name": name, "dtype": layer.dtype_policy, "use_bias": False}
    regularizer = "depthwise" if part.depthwise else "kernel"
    settings[f"{regularizer}_regularizer"] = parts.regularizer(layer, "kernel")
    weights = {"kernel": kernel}
    if last:
        settings |= _ending(layer)
        if layer.use_bias:
            weights["bias"] = layer.bias.numpy()
    if isinstance(layer, layers.Dense):
        new = layers.Dense(kernel.shape[-1], **settings)
        return parts.built(new, (None, kernel.shape[0]), weights, like=layer)
    settings |= _geometry(layer, part)
    if part.depthwise:
        new = _DEPTHWISE[type(layer)](depth_multiplier=kernel.shape[-1], **settings)
    else:
        new = POINTWISE[type(layer)](kernel.shape[-1], **settings)
    shape = [None] * (kernel.ndim - 1)
    first = layer.data_format == "channels_first"
    shape.insert(1 if first else len(shape), kernel.shape[-2])
    return parts.built(new, shape, weights, like=layer)


def _ending(layer):
    activation = layer.activation
    if isinstance(activation, layers.Layer):
        activation = clone(activation)
    return {
        "use_bias": layer.use_bias,
        "activation": activations.get(activation),
        "bias_regularizer": parts.regularizer(layer, "bias"),
        "activity_regularizer": regularizers.get(layer.activity_regularizer),
        "bias_constraint": layer.bias_constraint,
    }


def _geometry(layer, part):
    def along(values):
        return tuple(v if i in part.geometry else 1 for i, v in enumerate(values))

    size = part.kernel.shape[:-2]
    return {
        "kernel_size": size,
        "strides": along(layer.strides),
        "dilation_rate": along(layer.dilation_rate),
        "padding": layer.padding if max(size) > 1 else "valid",
        "data_format": layer.data_format,
    }


def _unique(base, taken):
    name = unused_name(base, taken)
    taken.add(name)
    return name
