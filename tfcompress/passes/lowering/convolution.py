"""Convolutions and pooling that TFLite has no integer kernel for, and einsum layers."""

import keras
import numpy as np
from keras import layers, ops

from tfcompress.graph import activation_name, built_copy, has_mask
from tfcompress.passes import quantize_rules as rules
from tfcompress.passes.lowering import parts


def splits(operation):
    """Whether a kernel has an activation that TFLite does not fuse with it."""
    return isinstance(operation, rules.CONVOLUTIONS) and (
        activation_name(operation) not in _fusing(operation)
    )


def _fusing(operation):
    transposed = isinstance(operation, rules.TRANSPOSED)
    return ("linear",) if transposed else rules.FUSED_ACTIVATIONS


def split_activation(layer):
    """Form of a kernel with such an activation: the activation as a layer."""
    linear = built_copy(layer, activation="linear")
    name = f"{layer.name}_{activation_name(layer)}"
    return lambda x: parts.activated(linear(x), layer.activation, name)


def separable(layer):
    """Form of SeparableConv1D and 2D: a depthwise convolution and a pointwise one."""
    one = isinstance(layer, layers.SeparableConv1D)
    first = layers.DepthwiseConv1D if one else layers.DepthwiseConv2D
    second = layers.Conv1D if one else layers.Conv2D
    if layer.data_format != "channels_last":
        return None
    shape = layer.get_build_config()["input_shape"]
    depthwise = parts.built(
        first(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            data_format="channels_last",
            depth_multiplier=layer.depth_multiplier,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            depthwise_regularizer=parts.regularizer(layer, "depthwise"),
            name=f"{layer.name}_depthwise",
            dtype=layer.dtype_policy,
        ),
        shape,
        {"kernel": parts.numpy(layer.depthwise_kernel)},
        like=layer,
    )
    pointwise = parts.built(
        second(
            layer.filters,
            1,
            data_format="channels_last",
            use_bias=layer.use_bias,
            kernel_regularizer=parts.regularizer(layer, "pointwise"),
            name=f"{layer.name}_pointwise",
            dtype=layer.dtype_policy,
        ),
        (*shape[:-1], shape[-1] * layer.depth_multiplier),
        {"kernel": parts.numpy(layer.pointwise_kernel)}
        | ({"bias": parts.numpy(layer.bias)} if layer.use_bias else {}),
        like=layer,
    )
    name = f"{layer.name}_activation"
    return lambda x: parts.activated(pointwise(depthwise(x)), layer.activation, name)


def conv3d(layer):
    """Form of Conv3D: one Conv2D that reads the slices of depth as channels.

    The sum over depth stays within one integer accumulator.
    """
    plain = layer.groups == 1 and layer.data_format == "channels_last"
    if not plain or layer.padding == "causal":
        return None
    depth, height, width = layer.kernel_size
    kernel = parts.numpy(layer.kernel)
    channels, filters = kernel.shape[3:]
    flat = np.transpose(kernel, (1, 2, 0, 3, 4)).reshape(
        height, width, depth * channels, filters
    )
    conv = parts.built(
        layers.Conv2D(
            filters,
            (height, width),
            strides=layer.strides[1:],
            data_format="channels_last",
            dilation_rate=layer.dilation_rate[1:],
            padding=layer.padding,
            use_bias=layer.use_bias,
            kernel_regularizer=parts.regularizer(layer, "kernel"),
            name=f"{layer.name}_slices",
            dtype=layer.dtype_policy,
        ),
        (None, None, None, depth * channels),
        {"kernel": flat}
        | ({"bias": parts.numpy(layer.bias)} if layer.use_bias else {}),
        like=layer,
    )

    def form(x):
        found = _slices(
            x, depth, layer.strides[0], layer.dilation_rate[0], layer.padding
        )
        joined = ops.concatenate(found, axis=-1) if len(found) > 1 else found[0]
        steps = joined.shape[1]
        y = conv(ops.reshape(joined, (-1, *joined.shape[2:])))
        y = ops.reshape(y, (-1, steps, *y.shape[1:]))
        return parts.activated(y, layer.activation, f"{layer.name}_activation")

    return form


def _slices(x, size, stride, dilation, padding):
    """The inputs of each offset along depth, all of the output's depth."""
    total = x.shape[1]
    reach = (size - 1) * dilation + 1
    steps = -(-total // stride) if padding == "same" else (total - reach) // stride + 1
    if padding == "same":
        missing = max((steps - 1) * stride + reach - total, 0)
        if missing:
            around = (missing // 2, missing - missing // 2)
            x = ops.pad(x, ((0, 0), around, (0, 0), (0, 0), (0, 0)))
    last = (steps - 1) * stride + 1
    return [x[:, k : k + last : stride] for k in range(0, reach, dilation)]


def pooling3d(layer):
    """Form of MaxPooling3D and AveragePooling3D: two dimensions, then depth."""
    if layer.data_format != "channels_last":
        return None
    largest = isinstance(layer, layers.MaxPooling3D)
    pool = layers.MaxPooling2D if largest else layers.AveragePooling2D
    sizes, strides = layer.pool_size, layer.strides

    def form(x):
        depth, channels = x.shape[1], x.shape[-1]
        settings = {"padding": layer.padding, "data_format": "channels_last"}
        plane = pool(sizes[1:], strides[1:], name=f"{layer.name}_plane", **settings)
        line = pool(
            (sizes[0], 1), (strides[0], 1), name=f"{layer.name}_depth", **settings
        )
        y = plane(ops.reshape(x, (-1, *x.shape[2:])))
        height, width = y.shape[1:3]
        y = line(ops.reshape(y, (-1, depth, height * width, channels)))
        return ops.reshape(y, (-1, y.shape[1], height, width, channels))

    return form


def upsampling(layer):
    """Form of UpSampling1D and 3D: repetition."""
    size = layer.size if isinstance(layer.size, (list, tuple)) else (layer.size,)

    def form(x):
        for axis, times in enumerate(size, start=1):
            if times > 1:
                x = _repeated(x, times, axis)
        return x

    return form


def _repeated(x, times, axis):
    """Each entry along `axis` so many times, by joining copies."""
    shape = x.shape
    wide = ops.expand_dims(x, axis + 1)
    wide = ops.concatenate([wide] * times, axis=axis + 1)
    return ops.reshape(
        wide, (-1, *shape[1:axis], shape[axis] * times, *shape[axis + 1 :])
    )


def einsum_dense(layer, *, scale=None):
    """Form of EinsumDense: a Dense layer between transpositions.

    Args:
        layer: Built EinsumDense.
        scale: Constant that multiplies the output; it is folded into the kernel at
            export. `None` for none.
    """
    shape = layer.get_build_config()["input_shape"]
    plan = _plan(layer.equation, len(shape))
    if plan is None:
        return None
    left, contracted, free, output, weight = plan
    kernel = parts.numpy(layer._kernel if hasattr(layer, "_kernel") else layer.kernel)
    sizes = dict(zip(weight, kernel.shape, strict=True))
    order = [weight.index(label) for label in (*contracted, *free)]
    flat = np.transpose(kernel, order).reshape(
        int(np.prod([sizes[c] for c in contracted])), -1
    )
    bias, added = _bias(layer, free, output, sizes)
    dense = parts.dense(
        layer,
        f"{layer.name}_dense",
        flat,
        bias,
        kernel_regularizer=parts.regularizer(layer, "kernel"),
    )
    name = f"{layer.name}_activation"
    scaled = None
    if scale is not None:
        factors = np.full(flat.shape[1], scale, "float32")
        scaled = parts.affine(layer, f"{layer.name}_scale", factors, trainable=False)

    def form(x):
        labels = [*left, *contracted]
        source = layer_labels(layer.equation, len(shape))
        y = _transposed(x, source, labels)
        kept = y.shape[1 : len(left)]
        if len(contracted) > 1:
            y = ops.reshape(y, (-1, *kept, flat.shape[0]))
        y = dense(y) if scaled is None else scaled(dense(y))
        if len(free) > 1:
            y = ops.reshape(y, (-1, *kept, *[sizes[f] for f in free]))
        elif not free:
            y = ops.reshape(y, (-1, *kept))
        y = _transposed(y, [*left, *free], output)
        y = y if added is None else y + added(x)
        return parts.activated(y, layer.activation, name)

    return form


def layer_labels(equation, rank):
    """Labels of the axes of the input, an ellipsis spelled out."""
    return _spelled(equation.split(",")[0], rank)


def _spelled(labels, rank):
    labels = labels.replace(" ", "")
    named = labels.replace("...", "")
    extra = [f"...{i}" for i in range(rank - len(named))]
    if "..." not in labels:
        return list(labels)
    before, after = labels.split("...")
    return [*before, *extra, *after]


def _plan(equation, rank):
    """Which labels stay, are summed over, and are new; `None` if that is not all."""
    inputs, rest = equation.replace(" ", "").split(",")
    weight, output = rest.split("->")
    source = _spelled(inputs, rank)
    extra = len(source) - len(inputs.replace("...", ""))
    result = _spelled(output, len(output.replace("...", "")) + extra)
    left = [label for label in source if label in result]
    contracted = [label for label in source if label not in result]
    free = [label for label in weight if label not in source]
    fits = (
        not set(weight) & set(left)
        and set(contracted) <= set(weight)
        and set(free) <= set(result)
        and left[:1] == result[:1] == source[:1]
    )
    return (left, contracted, free, result, list(weight)) if fits else None


def _bias(layer, free, output, sizes):
    """The bias as that of the Dense layer, or as a parameter that is added."""
    if layer.bias is None:
        return None, None
    bias = parts.numpy(layer.bias)
    axes = [label for label in output if label in (layer.bias_axes or "")]
    if axes and set(axes) <= set(free) and len(axes) == len(bias.shape):
        spread = bias.reshape(
            [sizes[f] if f in axes else 1 for f in output if f in free]
        )
        order = [f for f in output if f in free]
        full = np.broadcast_to(spread, [sizes[f] for f in order])
        return np.transpose(full, [order.index(f) for f in free]).reshape(-1), None
    return None, parts.parameter(layer, f"{layer.name}_bias", bias)


def _transposed(x, source, target):
    if list(source) == list(target):
        return x
    return ops.transpose(x, [list(source).index(label) for label in target])


def time_distributed(layer):
    """Form of TimeDistributed: the layer on all steps as one batch."""
    inner = layer.layer
    if (
        not isinstance(inner, keras.layers.Layer)
        or len(inner.weights)
        and not (inner.built)
    ):
        return None
    applied = built_copy(inner)

    def form(x):
        if has_mask(x):
            return None
        steps = x.shape[1]
        y = applied(ops.reshape(x, (-1, *x.shape[2:])))
        return ops.reshape(y, (-1, steps, *y.shape[1:]))

    return form


LAYERS = {
    layers.SeparableConv1D: separable,
    layers.SeparableConv2D: separable,
    layers.Conv3D: conv3d,
    layers.MaxPooling3D: pooling3d,
    layers.AveragePooling3D: pooling3d,
    layers.UpSampling1D: upsampling,
    layers.UpSampling3D: upsampling,
    layers.EinsumDense: einsum_dense,
    layers.TimeDistributed: time_distributed,
}
