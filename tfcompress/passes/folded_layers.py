"""Kernels that take in a scale and shift, or the kernel before them.

Each function returns a new layer that computes the same at inference, or `None` where
no kernel does exactly that.

Example:
    ```python
    scale, shift = scale_and_shift(batch_norm)
    folded = scaled_output(conv, scale, shift, axis=3, rank=4)
    ```

Reference:
    Jacob et al., 2017, eq. 14, for what folding computes. arXiv:1712.05877
"""

import numpy as np
from keras import layers

from tfcompress.graph import activation_name, clone
from tfcompress.passes.export_graph import channel_shape
from tfcompress.passes.lowering import parts
from tfcompress.passes.lowering.convolution import layer_labels

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
LINEAR = (
    *CONVOLUTIONS,
    *_DEPTHWISE,
    *_SEPARABLE,
    *_TRANSPOSED,
    layers.Dense,
    layers.EinsumDense,
)


def ends_linear(layer):
    """Whether a layer is a kernel without an activation of its own."""
    return type(layer) in LINEAR and activation_name(layer) == "linear"


def scaled_output(layer, scale, shift, *, axis, rank, name=None):
    """The layer whose output is that of `layer`, times `scale` plus `shift`.

    Args:
        layer: Built layer of `LINEAR` without activation.
        scale: Array of shape `(channels,)`.
        shift: Array of shape `(channels,)`.
        axis: Axis of the output along which they lie.
        rank: Rank of the output.
        name: Name of the new layer; `None` keeps the old.
    """
    if isinstance(layer, layers.EinsumDense):
        return _einsum_scaled_output(layer, scale, shift, axis % rank, rank, name)
    if axis % rank != _channel_axis(layer, rank):
        return None
    weights = _arrays(layer)
    if isinstance(layer, _SEPARABLE):
        weights["pointwise_kernel"] = weights["pointwise_kernel"] * scale
    else:
        weights["kernel"] = weights["kernel"] * scale.reshape(channel_shape(layer))
    weights["bias"] = weights.get("bias", 0.0) * scale + shift
    return _rebuilt(layer, weights, name=name, use_bias=True)


def scaled_input(layer, scale, shift, *, axis, rank):
    """The layer that computes from x what `layer` does from `scale * x + shift`.

    A shift and zero padding do not commute: where `layer` pads, there is no such layer
    unless the shift is 0.

    Args:
        layer: Built layer of `LINEAR`, with or without activation.
        scale: Array of shape `(channels,)`.
        shift: Array of shape `(channels,)`.
        axis: Axis of the input along which they lie.
        rank: Rank of the input.
    """
    if isinstance(layer, layers.EinsumDense):
        return _einsum_scaled_input(layer, scale, shift, axis % rank, rank)
    fits = axis % rank == _channel_axis(layer, rank)
    if not fits or isinstance(layer, _TRANSPOSED) or (pads(layer) and shift.any()):
        return None
    weights = _arrays(layer)
    name = "depthwise_kernel" if isinstance(layer, _SEPARABLE) else "kernel"
    scale, shift = (beside_kernel(layer, v, weights[name]) for v in (scale, shift))
    constant = (weights[name] * shift).sum(axis=tuple(range(weights[name].ndim - 2)))
    weights[name] = weights[name] * scale
    if isinstance(layer, (*_DEPTHWISE, *_SEPARABLE)):
        constant = constant.reshape(-1)
    else:
        constant = constant.sum(axis=0)
    if isinstance(layer, _SEPARABLE):
        pointwise = weights["pointwise_kernel"]
        constant = constant @ pointwise.reshape(pointwise.shape[-2:])
    weights["bias"] = weights.get("bias", 0.0) + constant
    return _rebuilt(layer, weights, use_bias=True)


def merged(first, second):
    """The layer that computes `second(first(x))`, named and configured as `second`.

    Dense layers merge, and convolutions of one group if one of them is 1x1 and neither
    its stride nor zero padding comes between.

    Args:
        first: Built layer of `LINEAR` without activation.
        second: Built layer that reads it, with or without activation.
    """
    same = type(first) is type(second) and first.dtype_policy == second.dtype_policy
    if not same or not isinstance(first, (layers.Dense, *CONVOLUTIONS)):
        return None
    one, two = _arrays(first), _arrays(second)
    bias = one.get("bias")
    if isinstance(first, layers.Dense):
        changes = {}
        kernel = one["kernel"] @ two["kernel"]
    else:
        changes = _joined_geometry(first, second)
        if changes is None or (bias is not None and bias.any() and pads(second)):
            return None
        kernel = _composed(one["kernel"], two["kernel"])
    weights = {"kernel": kernel, "bias": two.get("bias", 0.0)}
    if bias is not None:
        spatial = tuple(range(two["kernel"].ndim - 2))
        weights["bias"] = weights["bias"] + bias @ two["kernel"].sum(axis=spatial)
    use_bias = first.use_bias or second.use_bias
    if not use_bias:
        del weights["bias"]
    shape = first.get_build_config()["input_shape"]
    return _rebuilt(second, weights, shape=shape, use_bias=use_bias, **changes)


def pads(layer):
    """Whether a convolution reads zeros beyond its input."""
    padding = getattr(layer, "padding", "valid")
    return padding != "valid" and max(layer.kernel_size) > 1


def _composed(first, second):
    """Kernel of two convolutions of which one is 1x1 (both `(..., in, out)`)."""
    spatial = "hwd"[: first.ndim - 2]
    if max(first.shape[:-2]) == 1:
        first = first.reshape(first.shape[-2:])
        return np.einsum(f"io,{spatial}op->{spatial}ip", first, second)
    second = second.reshape(second.shape[-2:])
    return np.einsum(f"{spatial}io,op->{spatial}ip", first, second)


def _joined_geometry(first, second):
    """Kernel size, strides, padding and dilation of both in one; `None` if none is."""
    if first.groups > 1 or second.groups > 1 or first.data_format != second.data_format:
        return None
    points = [max(layer.kernel_size) == 1 for layer in (first, second)]
    strided = [max(layer.strides) > 1 for layer in (first, second)]
    if not any(points):
        return None
    if points[0] and not points[1] and strided[0]:
        return None
    if points[1] and not points[0] and strided[1] and first.padding != "valid":
        return None
    shape = first if points[1] else second
    strides = [a * b for a, b in zip(first.strides, second.strides, strict=True)]
    if max(strides) > 1 and max(shape.dilation_rate) > 1:
        return None
    return {
        "kernel_size": shape.kernel_size,
        "padding": shape.padding,
        "dilation_rate": shape.dilation_rate,
        "strides": tuple(strides),
    }


def beside_kernel(layer, values, kernel):
    """One number for each input channel, in the shape that multiplies the kernel."""
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, (*_DEPTHWISE, *_SEPARABLE)) or groups == 1:
        return values[:, None]
    by_group = np.repeat(values.reshape(groups, -1), kernel.shape[-1] // groups, axis=0)
    return by_group.T


def _einsum_scaled_output(layer, scale, shift, axis, rank, name):
    source, weight, output = _terms(layer)
    label = layer_labels(output, rank)[axis]
    if label not in weight or ("..." in output and not output.startswith("...")):
        return None
    weights = _arrays(layer)
    along = _spread(label, weight, scale)
    weights["kernel"] = weights["kernel"] * along
    named = output.replace("...", "")
    bias = _full_bias(layer, named, weights) * _spread(label, named, scale)
    return _einsum_rebuilt(
        layer, weights, bias + _spread(label, named, shift), label, name
    )


def _einsum_scaled_input(layer, scale, shift, axis, rank):
    source, weight, output = _terms(layer)
    label = layer_labels(source, rank)[axis]
    named = output.replace("...", "")
    summed = set(source.replace("...", "")) - set(output)
    if label in output or label not in weight or not summed <= set(weight):
        return None
    if "..." in output and not output.startswith("..."):
        return None
    weights = _arrays(layer)
    shared = [c for c in named if c in weight]
    constant = np.einsum(
        f"{weight},{label}->{''.join(shared)}", weights["kernel"], shift
    )
    sizes = dict(zip(weight, weights["kernel"].shape, strict=True))
    shape = [sizes[c] if c in shared else 1 for c in named]
    weights["kernel"] = weights["kernel"] * _spread(label, weight, scale)
    bias = _full_bias(layer, named, weights) + constant.reshape(shape)
    return _einsum_rebuilt(layer, weights, bias, shared, None)


def _einsum_rebuilt(layer, weights, bias, labels, name):
    """With a bias, given over all labels of the output with 1 where it is constant."""
    named = _terms(layer)[2].replace("...", "")
    axes = "".join(c for c in named if c in labels or c in (layer.bias_axes or ""))
    if not axes:
        return None
    weights["bias"] = bias.reshape(bias.shape[named.index(axes[0]) :])
    return _rebuilt(layer, weights, name=name, bias_axes=axes)


def _full_bias(layer, named, weights):
    """The bias of an EinsumDense with an axis for each label of its output."""
    bias = weights.get("bias")
    if bias is None:
        return np.zeros([1] * len(named))
    return bias.reshape([1] * (len(named) - bias.ndim) + list(bias.shape))


def _spread(label, labels, values):
    """`values` along the axis of `label`, 1 along the others."""
    return values.reshape([-1 if c == label else 1 for c in labels])


def _terms(layer):
    source, rest = layer.equation.replace(" ", "").split(",")
    return source, *rest.split("->")


def _channel_axis(layer, rank):
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return 1 if first else rank - 1


def _arrays(layer):
    return {v.name: v.numpy().astype("float64") for v in layer.weights}


def _rebuilt(layer, weights, *, name=None, shape=None, **changes):
    copied = clone(layer, name=name, **changes)
    shape = shape or layer.get_build_config()["input_shape"]
    return parts.built(copied, shape, weights, like=layer)
