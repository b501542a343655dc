"""What becomes of channels in each operation without weights of its own.

Layers with weights are in `channel_weights`. To support a further operation, add its
rule here; what has none keeps all channels that it touches, and is named to the user.
"""

import math

import keras
import numpy as np
from keras import layers

from tfcompress.graph import channel_weights
from tfcompress.graph.channel_weights import (
    is_elementwise,
    only_channels,
    with_channels,
)
from tfcompress.graph.channels import KEPT, Channels, NotFollowedError


def find_channels(graph):
    """The `Channels` of a `Graph`."""
    return Channels(graph, rule_of)


def rule_of(operation):
    """The rule of an operation, a function of `Channels` and a call; or `None`."""
    rule = channel_weights.LAYERS.get(type(operation)) or _LAYERS.get(type(operation))
    if rule is None and type(operation).__module__.startswith("keras."):
        is_layer = isinstance(operation, keras.layers.Layer)
        named = _OF_APPLICATIONS if is_layer else _OPERATIONS
        rule = named.get(type(operation).__name__)
    if rule is None:
        return None

    def apply(channels, call):
        if getattr(operation, "lora_enabled", False) or (
            getattr(operation, "quantization_mode", None) is not None
        ):
            raise NotFollowedError("LoRA or Keras' own quantization is in it")
        return rule(channels, operation, call, *call.inputs)

    return apply


def _same(channels, operation, call, x, *others):
    # A constant for each channel would have to lose some, too.
    constants = [getattr(operation, name, None) for name in ("x_min", "x_max")]
    if getattr(operation, "noise_shape", None) is not None or any(
        np.ndim(value) for value in constants
    ):
        channels.keep(x, f"{operation.name!r} has a setting for each")
    return x


def _activation(channels, layer, call, x):
    if is_elementwise(layer.activation):
        return x
    if getattr(layer.activation, "__name__", "") in ("softmax", "log_softmax"):
        return _softmax_along(channels, layer, x, [-1])
    raise NotFollowedError("its activation may mix channels")


def _softmax(channels, operation, call, x):
    axis = operation.axis
    axes = list(range(len(x))) if axis is None else np.ravel(axis).tolist()
    return _softmax_along(channels, operation, x, axes)


def _softmax_along(channels, operation, x, axes):
    channels.keep([x[a] for a in axes], f"{operation.name!r} sums over them")
    return x


def _spatial(channels, layer, call, x):
    """Pooling, padding, resizing: something along all axes but the channels'."""
    ids, axis = only_channels(channels, layer, x)
    return with_channels(len(x), axis, ids)


def _global_pool(channels, layer, call, x):
    ids, axis = only_channels(channels, layer, x)
    if not layer.keepdims:
        return (None, ids)
    return with_channels(len(x), axis, ids)


def _rescaling(channels, layer, call, x):
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        channels.keep(x, f"{layer.name!r} has a constant for each")
    return x


def _normalization(channels, layer, call, x):
    channels.keep(x, f"{layer.name!r} has statistics for each")
    for variable in layer.variables:
        channels.weight(variable, *[None] * len(variable.shape))
    return x


def _repeat_vector(channels, layer, call, x):
    return (x[0], None, x[1])


def _broadcast(channels, operation, call, *inputs):
    """Operations on values at equal places, with broadcasting."""
    shape = call.output_shapes[0]
    found = []
    for axis in range(-len(shape), 0):
        here = _not_broadcast(call, axis, shape[axis])
        found.append(_tied(channels, operation, here))
    return tuple(found)


def _concatenate(channels, operation, call, *inputs):
    shapes, parts = zip(*call.operands, strict=True)
    along = operation.axis % len(shapes[0])
    found = []
    for axis, column in enumerate(zip(*parts, strict=True)):
        if axis != along:
            found.append(_tied(channels, operation, column))
        elif all(ids is None for ids in column):
            found.append(None)
        else:
            # Ids of a part that stays whole are those of what stays.
            ids = [
                np.full(shape[axis], KEPT) if ids is None else ids
                for ids, shape in zip(column, shapes, strict=True)
            ]
            found.append(np.concatenate(ids))
    return tuple(found)


def _stack(channels, operation, call, *inputs):
    _, parts = zip(*call.operands, strict=True)
    found = [_tied(channels, operation, c) for c in zip(*parts, strict=True)]
    found.insert(operation.axis % (len(found) + 1), None)
    return tuple(found)


def _tied(channels, operation, column):
    """Ids of an axis of several operands, tied."""
    for other in column[1:]:
        channels.tie(column[0], other, f"{operation.name!r} joins them")
    return column[0]


def _unstack(channels, operation, call, x):
    axis = operation.axis % len(x)
    channels.keep([x[axis]], f"{operation.name!r} takes them apart")
    found = tuple(ids for i, ids in enumerate(x) if i != axis)
    return [found] * len(call.output_shapes)


def _split(channels, operation, call, x):
    axis = operation.axis % len(x)
    sizes = [shape[axis] for shape in call.output_shapes]
    if x[axis] is None or len(sizes) == 1:
        return [x] * len(sizes)
    parts = np.split(x[axis], np.cumsum(sizes)[:-1])

    def ends(count):
        return np.cumsum([count(ids) for ids in parts])[:-1].tolist()

    channels.setting(operation, "indices_or_sections", ends)
    return [(*x[:axis], ids, *x[axis + 1 :]) for ids in parts]


def _permute(channels, operation, call, x):
    if isinstance(operation, layers.Permute):
        order = (0, *operation.dims)
    else:
        order = operation.axes or tuple(reversed(range(len(x))))
    return tuple(x[axis] for axis in order)


def _swap(channels, operation, call, x):
    found = list(x)
    first, second = operation.axis1, operation.axis2
    found[first], found[second] = found[second], found[first]
    return tuple(found)


def _move(channels, operation, call, x):
    rank = len(x)
    source = [axis % rank for axis in np.ravel(operation.source)]
    target = [axis % rank for axis in np.ravel(operation.destination)]
    order = [axis for axis in range(rank) if axis not in source]
    for place, axis in sorted(zip(target, source, strict=True)):
        order.insert(place, axis)
    return tuple(x[axis] for axis in order)


def _expand(channels, operation, call, x):
    found = list(x)
    rank = len(call.output_shapes[0])
    for axis in sorted(a % rank for a in np.ravel(operation.axis)):
        found.insert(axis, None)
    return tuple(found)


def _squeeze(channels, operation, call, x):
    shape = call.input_shapes[0]
    axes = operation.axis
    if axes is None:
        axes = [i for i, size in enumerate(shape) if size == 1]
    gone = {a % len(x) for a in np.ravel(axes)}
    return tuple(ids for i, ids in enumerate(x) if i not in gone)


def _reduce(channels, operation, call, x):
    axes = range(len(x)) if operation.axis is None else np.ravel(operation.axis)
    gone = {int(a) % len(x) for a in axes}
    channels.keep([x[a] for a in gone], f"{operation.name!r} reduces over them")
    found = [None if i in gone else ids for i, ids in enumerate(x)]
    if not operation.keepdims:
        found = [ids for i, ids in enumerate(found) if i not in gone]
    return tuple(found)


def _get_item(channels, operation, call, x):
    """Slices and indices along axes that stay whole."""
    key = (*call.arguments.args, *call.arguments.kwargs.values())[1]
    key = key if isinstance(key, tuple) else (key,)
    if any(not isinstance(k, (int, slice, type(None), type(...))) for k in key):
        raise NotFollowedError("an index that is neither a number nor a slice")
    missing = len(x) - sum(k is not None and k is not ... for k in key)
    if ... not in key:
        key = (*key, ...)
    place = key.index(...)
    key = (*key[:place], *[slice(None)] * missing, *key[place + 1 :])
    found, axes = [], iter(x)
    for part in key:
        if part is None:
            found.append(None)
            continue
        ids = next(axes)
        if part == slice(None):
            found.append(ids)
            continue
        channels.keep([ids], f"{operation.name!r} picks some of them by number")
        if isinstance(part, slice):
            found.append(None)
    return tuple(found)


def _pad(channels, operation, call, x):
    pairs = np.broadcast_to(operation.pad_width, (len(x), 2))
    padded = [max(pair) > 0 for pair in pairs]
    channels.keep(
        [ids for ids, wider in zip(x, padded, strict=True) if wider],
        f"{operation.name!r} pads along them",
    )
    return tuple(None if wider else ids for ids, wider in zip(x, padded, strict=True))


def _matmul(channels, operation, call, *inputs):
    if len(inputs) != 2 or min(map(len, inputs)) < 2:
        raise NotFollowedError("a product with a vector or a constant")
    first, second = inputs
    channels.tie(first[-1], second[-2], f"{operation.name!r} sums over them")
    channels.summed += [first[-1]] if first[-1] is not None else []
    shape = call.output_shapes[0]
    batch = [
        _tied(channels, operation, _not_broadcast(call, axis, shape[axis]))
        for axis in range(-len(shape), -2)
    ]
    found = (*batch, first[-2], second[-1])
    summed = call.input_shapes[0][-1]
    channels.cost((*shape[1:], summed), (*found[1:], first[-1]))
    return found


def _not_broadcast(call, axis, size):
    """Ids of an axis in the operands that have it, and not in size 1 for another."""
    return [
        axes[axis]
        for shape, axes in call.operands
        if len(shape) >= -axis and not (shape[axis] == 1 and size != 1)
    ]


def _einsum(channels, operation, call, *inputs):
    terms, _, outputs = operation.subscripts.replace(" ", "").partition("->")
    terms = terms.split(",")
    if not outputs or "." in operation.subscripts or len(terms) != len(inputs):
        raise NotFollowedError("an einsum with dots, constants or no output term")
    ids, sizes = {}, {}
    for term, axes, shape in zip(terms, inputs, call.input_shapes, strict=True):
        for letter, one, size in zip(term, axes, shape, strict=True):
            if letter in ids:
                because = f"{operation.name!r} pairs them"
                channels.tie(ids[letter], one, because)
            ids.setdefault(letter, one)
            sizes.setdefault(letter, size)
    channels.summed += [
        found
        for letter, found in ids.items()
        if letter not in outputs and found is not None
    ]
    counted = [letter for letter in ids if letter != terms[0][0]]
    channels.cost(
        [sizes[letter] for letter in counted], [ids[letter] for letter in counted]
    )
    return tuple(ids[letter] for letter in outputs)


def _flatten(channels, layer, call, x):
    if getattr(layer, "data_format", None) == "channels_first" and len(x) > 2:
        x = (x[0], *x[2:], x[1])
        shape = call.input_shapes[0]
        return _reshaped(channels, layer, x, (shape[0], *shape[2:], shape[1]), call)
    return _reshaped(channels, layer, x, call.input_shapes[0], call)


def _reshape(channels, operation, call, x):
    found = _reshaped(channels, operation, x, call.input_shapes[0], call)
    name = "target_shape" if isinstance(operation, layers.Reshape) else "newshape"
    before = list(np.ravel(getattr(operation, name)))
    axes = found[len(found) - len(before) :]

    def after(count):
        return tuple(
            int(n) if ids is None or n == -1 else count(ids)
            for n, ids in zip(before, axes, strict=True)
        )

    if any(ids is not None for ids in found):
        channels.setting(operation, name, after)
    return found


def _reshaped(channels, operation, x, old, call):
    """Ids of the axes after a reshape, block by block of axes with equal products."""
    new = call.output_shapes[0]
    same = 0
    # From the end, so that unknown sizes before it do not matter.
    while same < min(len(old), len(new)) and old[-1 - same] == new[-1 - same]:
        same += 1
    tail = x[len(x) - same :]
    x, old, new = x[: len(x) - same], old[: len(old) - same], new[: len(new) - same]
    if all(ids is None for ids in x):
        return (*[None] * len(new), *tail)
    # The batch in front is nobody's business.
    head = ()
    if old[:1] == new[:1]:
        x, old, new, head = x[1:], old[1:], new[1:], (None,)
    if None in old or None in new:
        raise NotFollowedError("a reshape between sizes that are not known")
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        ends = _block(old, new, i, j)
        ids = _merged(channels, operation, x[i : ends[0]], old[i : ends[0]])
        found += _divided(channels, operation, ids, new[j : ends[1]])
        i, j = ends
    return (*head, *found, *tail)


def _block(old, new, i, j):
    """Ends of the shortest runs of axes from `i` and `j` with equal products."""
    end_i, end_j = min(i + 1, len(old)), min(j + 1, len(new))
    left, right = math.prod(old[i:end_i]), math.prod(new[j:end_j])
    while left != right:
        if left < right:
            left *= old[end_i]
            end_i += 1
        else:
            right *= new[end_j]
            end_j += 1
    # Axes of size 1 at the end belong to no other block.
    while end_i == len(old) and end_j < len(new) and new[end_j] == 1:
        end_j += 1
    while end_j == len(new) and end_i < len(old) and old[end_i] == 1:
        end_i += 1
    return end_i, end_j


def _merged(channels, operation, axes, sizes):
    """Ids of several axes made one: of the first with ids; the others stay whole."""
    with_ids = [i for i, ids in enumerate(axes) if ids is not None]
    if not with_ids:
        return None
    first, *others = with_ids
    channels.keep([axes[i] for i in others], f"{operation.name!r} merges axes")
    shape = [1] * len(sizes)
    shape[first] = sizes[first]
    return np.broadcast_to(axes[first].reshape(shape), sizes).ravel()


def _divided(channels, operation, ids, sizes):
    """Ids of the axes that one axis is divided into: one of them gets all."""
    if ids is None:
        return [None] * len(sizes)
    grid = ids.reshape(sizes)
    varies = [
        axis
        for axis, size in enumerate(sizes)
        if size > 1 and (np.take(grid, [0], axis) != grid).any()
    ]
    large = [axis for axis, size in enumerate(sizes) if size > 1]
    # Which of several axes is a choice: the first makes whole heads of attention.
    axis = (varies or large or [len(sizes) - 1])[0]
    because = f"{operation.name!r} divides them into {sizes}"
    found = [None] * len(sizes)
    found[axis] = channels.tie_axes(ids, sizes, axis, because)
    return found


_LAYERS = {
    layers.Activation: _activation,
    layers.Concatenate: _concatenate,
    layers.Flatten: _flatten,
    layers.Normalization: _normalization,
    layers.Permute: _permute,
    layers.RepeatVector: _repeat_vector,
    layers.Rescaling: _rescaling,
    layers.Reshape: _reshape,
    layers.Softmax: _softmax,
    **dict.fromkeys(
        (
            layers.ActivityRegularization,
            layers.AlphaDropout,
            layers.Dropout,
            layers.ELU,
            layers.GaussianDropout,
            layers.GaussianNoise,
            layers.Identity,
            layers.LeakyReLU,
            layers.Masking,
            layers.ReLU,
            layers.SpatialDropout1D,
            layers.SpatialDropout2D,
            layers.SpatialDropout3D,
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            layers.Add,
            layers.Average,
            layers.Maximum,
            layers.Minimum,
            layers.Multiply,
            layers.Subtract,
        ),
        _broadcast,
    ),
    **dict.fromkeys(
        (
            layers.AveragePooling1D,
            layers.AveragePooling2D,
            layers.AveragePooling3D,
            layers.Cropping1D,
            layers.Cropping2D,
            layers.Cropping3D,
            layers.MaxPooling1D,
            layers.MaxPooling2D,
            layers.MaxPooling3D,
            layers.Resizing,
            layers.UpSampling1D,
            layers.UpSampling2D,
            layers.UpSampling3D,
            layers.ZeroPadding1D,
            layers.ZeroPadding2D,
            layers.ZeroPadding3D,
        ),
        _spatial,
    ),
    **dict.fromkeys(
        (
            layers.GlobalAveragePooling1D,
            layers.GlobalAveragePooling2D,
            layers.GlobalAveragePooling3D,
            layers.GlobalMaxPooling1D,
            layers.GlobalMaxPooling2D,
            layers.GlobalMaxPooling3D,
        ),
        _global_pool,
    ),
}

# Layers that only `keras.applications` has; they have no public name.
_OF_APPLICATIONS = {
    "CustomScaleLayer": _broadcast,
    "LayerScale": channel_weights.layer_scale,
}

_ELEMENTWISE = (
    "Abs Absolute Cast Celu Clip Copy Cos Elu Erf Exp Gelu HardShrink HardSigmoid "
    "HardSilu HardTanh Identity LeakyRelu Log LogSigmoid Negative Reciprocal Relu "
    "Relu6 Round Rsqrt Selu Sigmoid Sign Silu Sin SoftShrink Softplus Softsign Sqrt "
    "Square Squareplus StopGradient Tanh TanhShrink Threshold"
)
_PAIRWISE = (
    "Add Divide Equal FloorDivide Greater GreaterEqual Less LessEqual LogicalAnd "
    "LogicalOr Maximum Minimum Multiply NotEqual Power Subtract TrueDivide Where"
)

_OPERATIONS = {
    **dict.fromkeys(_ELEMENTWISE.split(), _same),
    **dict.fromkeys(_PAIRWISE.split(), _broadcast),
    **dict.fromkeys(("Amax", "Amin", "Max", "Mean", "Min", "Sum"), _reduce),
    **dict.fromkeys(("AveragePool", "MaxPool", "Resize"), _spatial),
    "Concatenate": _concatenate,
    "Einsum": _einsum,
    "ExpandDims": _expand,
    "GetItem": _get_item,
    "LogSoftmax": _softmax,
    "Matmul": _matmul,
    "Moveaxis": _move,
    "Pad": _pad,
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Stack": _stack,
    "Swapaxes": _swap,
    "Transpose": _permute,
    "Unstack": _unstack,
}
