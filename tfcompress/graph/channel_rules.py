"""What becomes of channels in each operation without weights of its own.

Layers with weights are in `channel_weights`. To support a further operation, add its
rule here; what has none keeps all channels that it touches, and is named to the user.
"""

import math

import keras
import numpy as np
from keras import layers

from tfcompress.graph import channel_weights
from tfcompress.graph.channel_weights import is_elementwise, only_channels
from tfcompress.graph.channels import Channels, NotFollowedError, operands


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
        inputs = [channels.axes_of(t) for t in call.input_tensors]
        return rule(channels, operation, call, *inputs)

    return apply


def _same(channels, operation, call, x, *others):
    return x


def _activation(channels, layer, call, x):
    if is_elementwise(layer.activation):
        return x
    if getattr(layer.activation, "__name__", "") in ("softmax", "log_softmax"):
        return _softmax_along(channels, layer, x, [-1])
    raise NotFollowedError("its activation may mix channels")


def _softmax(channels, operation, call, x, *mask):
    axis = operation.axis
    axes = list(range(len(x))) if axis is None else np.ravel(axis).tolist()
    return _softmax_along(channels, operation, x, axes)


def _softmax_along(channels, operation, x, axes):
    channels.keep([x[a] for a in axes], f"{operation.name!r} sums over them")
    return x


def _spatial(channels, layer, call, x):
    """Pooling, padding, resizing: something along all axes but the channels'."""
    ids, axis = only_channels(channels, layer, x)
    return tuple(ids if i == axis else None for i in range(len(x)))


def _global_pool(channels, layer, call, x):
    ids, axis = only_channels(channels, layer, x)
    if not layer.keepdims:
        return (None, ids)
    return tuple(ids if i == axis else None for i in range(len(x)))


def _rescaling(channels, layer, call, x):
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        channels.keep(x, f"{layer.name!r} has a constant for each")
    return x


def _normalization(channels, layer, call, x):
    channels.keep(x, f"{layer.name!r} has statistics for each")
    return x


def _repeat_vector(channels, layer, call, x):
    return (x[0], None, x[1])


def _broadcast(channels, operation, call, *inputs):
    """Operations on values at equal places, with broadcasting."""
    shape = call.outputs[0].shape
    given = [(np.shape(v), channels.axes_of(v)) for v in operands(call)]
    because = f"{operation.name!r} joins them"
    found = []
    for axis in range(-len(shape), 0):
        here = [
            axes[axis]
            for sizes, axes in given
            if len(sizes) >= -axis and not (sizes[axis] == 1 and shape[axis] != 1)
        ]
        for other in here[1:]:
            channels.tie(here[0], other, because)
        found.append(here[0])
    return tuple(found)


def _concatenate(channels, operation, call, *inputs):
    return _joined(channels, operation, call, inputs, operation.axis)


def _joined(channels, operation, call, inputs, axis):
    axis %= len(inputs[0])
    found = []
    for place, column in enumerate(zip(*inputs, strict=True)):
        if place != axis:
            for other in column[1:]:
                channels.tie(column[0], other, f"{operation.name!r} joins them")
            found.append(column[0])
        elif all(ids is None for ids in column):
            found.append(None)
        else:
            found.append(np.concatenate(_with_kept(column, call, place)))
    return tuple(found)


def _with_kept(column, call, axis):
    """Ids of parts of an axis; those of parts that stay whole are 0."""
    return [
        np.zeros(t.shape[axis], int) if ids is None else ids
        for ids, t in zip(column, call.input_tensors, strict=True)
    ]


def _stack(channels, operation, call, *inputs):
    for column in zip(*inputs, strict=True):
        for other in column[1:]:
            channels.tie(column[0], other, f"{operation.name!r} stacks them")
    found = list(inputs[0])
    found.insert(operation.axis % (len(found) + 1), None)
    return tuple(found)


def _unstack(channels, operation, call, x):
    axis = operation.axis % len(x)
    channels.keep([x[axis]], f"{operation.name!r} takes them apart")
    found = tuple(ids for i, ids in enumerate(x) if i != axis)
    return [found] * len(call.outputs)


def _split(channels, operation, call, x):
    axis = operation.axis % len(x)
    sizes = [t.shape[axis] for t in call.outputs]
    if x[axis] is None:
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
    order = np.moveaxis(
        np.empty([2 + i for i in range(len(x))]),
        operation.source,
        operation.destination,
    ).shape
    return tuple(x[size - 2] for size in order)


def _expand(channels, operation, call, x):
    found = list(x)
    rank = len(call.outputs[0].shape)
    for axis in sorted(a % rank for a in np.ravel(operation.axis)):
        found.insert(axis, None)
    return tuple(found)


def _squeeze(channels, operation, call, x):
    shape = call.input_tensors[0].shape
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
    padded = [max(pair) > 0 for pair in operation.pad_width]
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
    batch = []
    for axis in range(-max(len(first), len(second)), -2):
        here = [x[axis] for x in inputs if len(x) >= -axis]
        for other in here[1:]:
            channels.tie(here[0], other, f"{operation.name!r} pairs them")
        batch.append(here[0])
    found = (*batch, first[-2], second[-1])
    shape = call.outputs[0].shape
    summed = call.input_tensors[0].shape[-1]
    channels.cost((*shape[1:], summed), (*found[1:], first[-1]))
    return found


def _einsum(channels, operation, call, *inputs):
    terms, _, outputs = operation.subscripts.replace(" ", "").partition("->")
    terms = terms.split(",")
    if not outputs or "." in operation.subscripts or len(terms) != len(inputs):
        raise NotFollowedError("an einsum with dots, constants or no output term")
    ids, sizes = {}, {}
    for term, axes, tensor in zip(terms, inputs, call.input_tensors, strict=True):
        for letter, one, size in zip(term, axes, tensor.shape, strict=True):
            if letter in ids:
                because = f"{operation.name!r} pairs them"
                channels.tie(ids[letter], one, because)
            ids.setdefault(letter, one)
            sizes.setdefault(letter, size)
    counted = [letter for letter in ids if letter != terms[0][0]]
    channels.cost(
        [sizes[letter] for letter in counted], [ids[letter] for letter in counted]
    )
    return tuple(ids[letter] for letter in outputs)


def _flatten(channels, layer, call, x):
    if getattr(layer, "data_format", None) == "channels_first" and len(x) > 2:
        x = (x[0], *x[2:], x[1])
        shape = call.input_tensors[0].shape
        return _reshaped(channels, layer, x, (shape[0], *shape[2:], shape[1]), call)
    return _reshaped(channels, layer, x, call.input_tensors[0].shape, call)


def _reshape(channels, operation, call, x):
    found = _reshaped(channels, operation, x, call.input_tensors[0].shape, call)
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
    new = call.outputs[0].shape
    if all(ids is None for ids in x):
        return (None,) * len(new)
    old, new = _without_unknowns(old, new)
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        ends = _block(old, new, i, j)
        ids = _merged(channels, operation, x[i : ends[0]], old[i : ends[0]])
        found += _divided(channels, operation, ids, new[j : ends[1]])
        i, j = ends
    return tuple(found)


def _without_unknowns(old, new):
    """Shapes with each unknown size replaced by a prime of its own."""
    unknown = [n for n in old if n is None], [n for n in new if n is None]
    if len(unknown[0]) != len(unknown[1]):
        raise NotFollowedError("a reshape between unknown sizes")
    primes = (1_000_003, 1_000_033, 1_000_037, 1_000_039)
    result = []
    for shape in (old, new):
        free = iter(primes)
        result.append([next(free) if n is None else n for n in shape])
    if math.prod(result[0]) != math.prod(result[1]):
        raise NotFollowedError("a reshape between unknown sizes")
    return result


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
