"""How layers with weights make, pass on and use up channels.

Each rule gets the `Channels` under construction, a layer, the call and the channel ids
of the inputs' axes, records the layer's weights, and returns the ids of the output's
axes (a tuple, or a list of them for several outputs).
"""

import dataclasses
import math
import re

import keras
import numpy as np
from keras import layers

from tfcompress.graph.channels import NotFollowedError

# Of a channel each of these depends on that channel alone.
ELEMENTWISE_ACTIVATIONS = frozenset(
    "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh "
    "leaky_relu linear log_sigmoid mish relu relu6 selu sigmoid silu soft_shrink "
    "softplus softsign sparse_plus sparse_sigmoid squareplus swish tanh tanh_shrink "
    "threshold".split()
)


def keep_unless_elementwise(channels, layer, axes):
    """Keeps channels that an activation mixes (softmax), or may mix (a custom one)."""
    for kind in ("activation", "recurrent_activation"):
        activation = getattr(layer, kind, None)
        if activation is not None and not is_elementwise(activation):
            name = getattr(activation, "__name__", type(activation).__name__)
            channels.keep(axes, f"activation {name!r} of {layer.name!r} may mix them")


def is_elementwise(activation):
    """Whether an activation is one of Keras' that treat each value by itself."""
    if isinstance(activation, layers.ReLU | layers.LeakyReLU | layers.ELU):
        return True
    name = getattr(activation, "__name__", None)
    return (
        name in ELEMENTWISE_ACTIVATIONS
        and getattr(keras.activations, name, None) is activation
    )


def channel_axis(layer, rank):
    """The axis of the channels in a layer's input, by its data format."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def only_channels(channels, layer, axes):
    """Ids of the channel axis, after saying that all other axes stay whole."""
    axis = channel_axis(layer, len(axes))
    others = (ids for i, ids in enumerate(axes) if i != axis)
    channels.keep(others, f"{layer.name!r} works along them")
    return axes[axis], axis


def with_channels(rank, axis, ids):
    """Axes of which one has ids."""
    return tuple(ids if i == axis else None for i in range(rank))


def _positions(call, axis):
    """Shape of an output without its batch and channels."""
    shape = call.output_shapes[0]
    return [n for i, n in enumerate(shape) if i not in (0, axis % len(shape))]


def _dense(channels, layer, call, x):
    out = channels.new((id(layer), "out"), layer.units)
    kernel = layer.kernel
    channels.weight(kernel, x[-1], out)
    channels.weight(layer.bias, out)
    channels.setting(layer, "units", out)
    channels.cost(
        (*_positions(call, -1), *kernel.shape),
        (*[None] * (len(x) - 2), x[-1], out),
    )
    channels.producer(call.name, kernel, 1, out, call.output)
    keep_unless_elementwise(channels, layer, (out,))
    return (*x[:-1], out)


def _einsum_dense(channels, layer, call, x):
    inputs, weight, outputs = re.split(",|->", layer.equation.replace(" ", ""))
    sizes = dict(zip(weight, layer.kernel.shape, strict=True))
    ids = _letters(inputs, x)
    made = [letter for letter in weight if letter not in inputs]
    for letter in made:
        ids[letter] = channels.new((id(layer), letter), sizes[letter])
    channels.weight(layer.kernel, *map(ids.get, weight))
    found = _from_letters(outputs, ids, x, inputs)
    if layer.bias is not None:
        first = min(map(outputs.index, layer.bias_axes))
        named = [c if c in layer.bias_axes else None for c in outputs[first:]]
        channels.weight(layer.bias, *map(ids.get, named))
    if any(axis is not None for axis in found):
        channels.setting(layer, "output_shape", _resized_output(layer, found))
    summed = [letter for letter in weight if letter not in outputs]
    channels.cost(
        (*call.output_shapes[0][1:], *map(sizes.get, summed)),
        (*found[1:], *map(ids.get, summed)),
    )
    for letter in made:
        name = call.name if len(made) == 1 else f"{call.name}/{letter}"
        place = outputs.index(letter) - len(outputs)
        channels.producer(
            name,
            layer.kernel,
            weight.index(letter),
            ids[letter],
            call.output,
            place,
        )
    keep_unless_elementwise(channels, layer, found)
    return found


def _resized_output(layer, axes):
    before = layer.get_config()["output_shape"]
    sizes = [before] if isinstance(before, int) else list(before)
    axes = axes[len(axes) - len(sizes) :]

    def resized(count):
        return tuple(
            n if ids is None or n is None else count(ids)
            for n, ids in zip(sizes, axes, strict=True)
        )

    return resized


def _letters(term, axes):
    """Dict from the letters of an einsum term to the ids of their axes."""
    if "..." not in term:
        return dict(zip(term, axes, strict=True))
    before, after = term.split("...")
    ids = dict(zip(before, axes, strict=False))
    return ids | dict(zip(reversed(after), reversed(axes), strict=False))


def _from_letters(term, ids, x, inputs):
    if "..." not in term:
        return tuple(ids.get(letter) for letter in term)
    before, after = term.split("...")
    start, end = (len(part) for part in inputs.split("..."))
    hidden = tuple(x[start : len(x) - end])
    return (*map(ids.get, before), *hidden, *map(ids.get, after))


def _conv(channels, layer, call, x):
    given, axis = only_channels(channels, layer, x)
    groups, filters = layer.groups, layer.filters
    out = channels.new((id(layer), "out"), filters)
    kernel = layer.kernel
    spatial = [None] * (len(x) - 2)
    each = kernel.shape[-2]
    because = f"{layer.name!r} has {groups} groups, which stay equal"
    if groups == 1:
        used = given
    elif each == 1:
        # Depthwise by another name: channels go with their groups.
        used = None
        channels.tie(given, channels.tie_axes(out, (groups, -1), 0, because), because)
        channels.setting(layer, "groups", given)
    else:
        used = None
        if given is not None:
            used = channels.tie_axes(given, (groups, each), 1, because)
        channels.tie_axes(out, (groups, filters // groups), 1, because)
    channels.weight(kernel, *spatial, used, out)
    positions = _positions(call, axis)
    channels.cost(
        (*positions, *kernel.shape), (*[None] * len(positions), *spatial, used, out)
    )
    return _filters(channels, layer, call, x, axis, kernel, -1, out)


def _conv_transpose(channels, layer, call, x):
    given, axis = only_channels(channels, layer, x)
    out = channels.new((id(layer), "out"), layer.filters)
    kernel = layer.kernel
    spatial = [None] * (len(x) - 2)
    channels.weight(kernel, *spatial, out, given)
    positions = [n for i, n in enumerate(call.input_shapes[0]) if i not in (0, axis)]
    channels.cost(
        (*positions, *kernel.shape), (*[None] * len(positions), *spatial, out, given)
    )
    return _filters(channels, layer, call, x, axis, kernel, -2, out)


def _filters(channels, layer, call, x, axis, kernel, kernel_axis, out):
    """Records filters that a convolution makes; ids of its output."""
    channels.weight(layer.bias, out)
    channels.setting(layer, "filters", out)
    place = kernel_axis % kernel.ndim
    channels.producer(call.name, kernel, place, out, call.output, axis - len(x))
    keep_unless_elementwise(channels, layer, (out,))
    return with_channels(len(x), axis, out)


def _depthwise(channels, layer, call, x):
    given, axis = only_channels(channels, layer, x)
    multiplier = layer.depth_multiplier
    out = None if given is None else np.repeat(given, multiplier)
    kernel = layer.kernel
    spatial = [None] * (len(x) - 2)
    channels.weight(kernel, *spatial, given, None)
    channels.weight(layer.bias, out)
    positions = _positions(call, axis)
    channels.cost(
        (*positions, *kernel.shape), (*[None] * len(positions), *spatial, given, None)
    )
    keep_unless_elementwise(channels, layer, (out,))
    return with_channels(len(x), axis, out)


def _separable(channels, layer, call, x):
    given, axis = only_channels(channels, layer, x)
    multiplier = layer.depth_multiplier
    middle = None if given is None else np.repeat(given, multiplier)
    out = channels.new((id(layer), "out"), layer.filters)
    spatial = [None] * (len(x) - 2)
    depthwise, pointwise = layer.depthwise_kernel, layer.pointwise_kernel
    channels.weight(depthwise, *spatial, given, None)
    channels.weight(pointwise, *spatial, middle, out)
    positions = _positions(call, axis)
    ahead = [None] * len(positions)
    channels.cost((*positions, *depthwise.shape), (*ahead, *spatial, given, None))
    channels.cost((*positions, *pointwise.shape), (*ahead, *spatial, middle, out))
    return _filters(channels, layer, call, x, axis, pointwise, -1, out)


def _batch_norm(channels, layer, call, x):
    ids = x[layer.axis]
    channels.weight(layer.gamma, ids, kind="scale")
    channels.weight(layer.beta, ids)
    for variable in (layer.moving_mean, layer.moving_variance):
        channels.weight(variable, ids, kind="statistic")
    return x


def _layer_norm(channels, layer, call, x):
    # Mean and variance are of what stays.
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    ids = [x[axis] for axis in axes]
    for name in ("gamma", "beta", "scale"):
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            channels.weight(variable, *ids)
    return x


def _group_norm(channels, layer, call, x):
    ids = x[layer.axis]
    if ids is not None:
        groups = len(ids) if layer.groups == -1 else layer.groups
        each = len(ids) // groups
        because = f"{layer.name!r} has {groups} groups, which stay equal"
        if each > 1:
            channels.tie_axes(ids, (groups, each), 1, because)
        elif layer.groups != -1:
            channels.setting(layer, "groups", ids)
    channels.weight(layer.gamma, ids)
    channels.weight(layer.beta, ids)
    return x


def layer_scale(channels, layer, call, x):
    """A factor for each channel (ConvNeXt)."""
    channels.weight(layer.gamma, x[-1])
    channels.setting(layer, "projection_dim", x[-1])
    return x


def _prelu(channels, layer, call, x):
    channels.weight(
        layer.alpha,
        *[
            ids if size != 1 else None
            for ids, size in zip(x[1:], layer.alpha.shape, strict=True)
        ],
    )
    return x


def _embedding(channels, layer, call, x):
    channels.keep(x, f"{layer.name!r} looks them up")
    out = channels.new((id(layer), "out"), layer.output_dim)
    channels.weight(layer._embeddings, None, out)
    channels.setting(layer, "output_dim", out)
    channels.producer(call.name, layer._embeddings, 1, out, call.output)
    return (*[None] * len(x), out)


def _attention(channels, layer, call, *inputs):
    axes = {name: channels.axes_of(tensor) for name, tensor in call.named.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in call.named.items()}
    axes.setdefault("key", axes["value"])
    output = layer.output_dense
    if set(axes) != {"query", "value", "key"} or output.kernel.ndim != 3:
        raise NotFollowedError("attention with other inputs or outputs than usual")
    for x in axes.values():
        channels.keep(x[:-1], f"{layer.name!r} attends along them")
    heads = channels.new((id(layer), "heads"), layer.num_heads)
    out = channels.new((id(layer), "out"), output.kernel.shape[-1])
    parts = {name: getattr(layer, f"{name}_dense") for name in axes}
    target = _product(shapes["query"][1:-1])
    source = _product(shapes["value"][1:-1])
    for name, part in parts.items():
        channels.weight(part.kernel, axes[name][-1], heads, None)
        channels.weight(part.bias, heads, None)
        positions = target if name == "query" else source
        channels.cost(
            (positions, *part.kernel.shape), (None, axes[name][-1], heads, None)
        )
        channels.producer(
            f"{call.name}/heads/{name}", part.kernel, 1, heads, rounded=False
        )
    channels.weight(output.kernel, heads, None, out)
    channels.weight(output.bias, out)
    channels.producer(call.name, output.kernel, 2, out, call.output)
    channels.cost((target, *output.kernel.shape), (None, heads, None, out))
    attended = [shapes["value"][axis] for axis in layer._attention_axes]
    for part in ("key", "value"):
        sizes = (target, *attended, *parts[part].kernel.shape[1:])
        channels.cost(sizes, (None, *[None] * len(attended), heads, None))
    channels.setting(layer, "num_heads", heads)
    channels.setting(layer, "output_shape", lambda count: (count(out),))
    found = [(*[None] * (len(axes["query"]) - 1), out)]
    if len(call.output_shapes) == 2:
        found.append((None, heads, *[None] * (len(call.output_shapes[1]) - 2)))
    return found


def _product(sizes):
    """Number of positions; `None` if it is not known."""
    return None if None in sizes else math.prod(sizes)


def _dot_attention(channels, layer, call, *inputs):
    if len(call.output_shapes) > 1 or layer.score_mode != "dot":
        raise NotFollowedError("attention with several outputs or additive scores")
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) == 3 else value
    for x in inputs:
        channels.keep(x[:-1], f"{layer.name!r} attends along them")
    channels.tie(query[-1], key[-1], f"{layer.name!r} multiplies queries and keys")
    channels.summed += [query[-1]] if query[-1] is not None else []
    shapes = call.input_shapes
    lengths = (shapes[0][1], shapes[1][1])
    channels.cost((*lengths, shapes[0][-1]), (None, None, query[-1]))
    channels.cost((*lengths, shapes[1][-1]), (None, None, value[-1]))
    return (*[None] * (len(query) - 1), value[-1])


_GATES = {layers.LSTM: 4, layers.GRU: 3, layers.SimpleRNN: 1}


def _recurrent(channels, layer, call, x, *states):
    if layer.stateful:
        raise NotFollowedError("it keeps its state from batch to batch")
    channels.keep(x[:-1], f"{layer.name!r} steps along them")
    units = _units(channels, layer, call, x[-1])
    for state in states:
        channels.tie(units, state[-1], f"{layer.name!r} starts from them")
    return [(*[None] * (len(shape) - 1), units) for shape in call.output_shapes]


def _units(channels, layer, call, given, part=""):
    """Records the weights of a recurrent layer; ids of its units."""
    gates = _GATES[type(layer)]
    cell = layer.cell
    units = channels.new((id(layer), "units"), layer.units)
    tiled = np.tile(units, gates)
    channels.weight(cell.kernel, given, tiled)
    channels.weight(cell.recurrent_kernel, units, tiled)
    if cell.bias is not None:
        channels.weight(cell.bias, *[None] * (len(cell.bias.shape) - 1), tiled)
    channels.setting(layer, "units", units)
    keep_unless_elementwise(channels, layer, (units,))
    steps = call.input_shapes[0][1]
    channels.cost((steps, *cell.kernel.shape), (None, given, tiled))
    channels.cost((steps, *cell.recurrent_kernel.shape), (None, units, tiled))
    channels.producer(call.name + part, cell.kernel, 1, tiled, repeats=gates)
    return units


def _bidirectional(channels, layer, call, x, *states):
    forward, backward = layer.forward_layer, layer.backward_layer
    known = type(forward) in _GATES and type(backward) in _GATES
    if states or not known or len(call.output_shapes) > 1 or forward.stateful:
        raise NotFollowedError("only LSTM, GRU and SimpleRNN without states are")
    channels.keep(x[:-1], f"{layer.name!r} steps along them")
    units = [
        _units(channels, layer, call, x[-1], f"/{name}")
        for name, layer in (("forward", forward), ("backward", backward))
    ]
    # Keras takes it for granted that both directions have as many.
    channels.tie(*units, f"{layer.name!r} has two directions of one size")
    joined = np.concatenate(units) if layer.merge_mode == "concat" else units[0]
    return (*[None] * (len(call.output_shapes[0]) - 1), joined)


def _time_distributed(channels, layer, call, x):
    rule = LAYERS.get(type(layer.layer))
    if rule is None or type(layer.layer) in (*_GATES, layers.Bidirectional):
        raise NotFollowedError(f"{type(layer.layer).__name__} in it is not known")
    channels.keep(x[1:2], f"{layer.name!r} steps along them")
    x = (x[0], *x[2:])
    inner = dataclasses.replace(
        call,
        inputs=[x],
        input_shapes=[_without_steps(call.input_shapes[0])],
        operands=[(_without_steps(call.input_shapes[0]), x)],
        outputs=[],
        output_shapes=[_without_steps(call.output_shapes[0])],
    )
    with channels.repeated(call.input_shapes[0][1]):
        found = rule(channels, layer.layer, inner, x)
    return (found[0], None, *found[1:])


def _without_steps(shape):
    return (shape[0], *shape[2:])


LAYERS = {
    layers.Attention: _dot_attention,
    layers.BatchNormalization: _batch_norm,
    layers.Bidirectional: _bidirectional,
    layers.Conv1D: _conv,
    layers.Conv1DTranspose: _conv_transpose,
    layers.Conv2D: _conv,
    layers.Conv2DTranspose: _conv_transpose,
    layers.Conv3D: _conv,
    layers.Conv3DTranspose: _conv_transpose,
    layers.Dense: _dense,
    layers.DepthwiseConv1D: _depthwise,
    layers.DepthwiseConv2D: _depthwise,
    layers.EinsumDense: _einsum_dense,
    layers.Embedding: _embedding,
    layers.GRU: _recurrent,
    layers.GroupNormalization: _group_norm,
    layers.LSTM: _recurrent,
    layers.LayerNormalization: _layer_norm,
    layers.MultiHeadAttention: _attention,
    layers.PReLU: _prelu,
    layers.RMSNormalization: _layer_norm,
    layers.SeparableConv1D: _separable,
    layers.SeparableConv2D: _separable,
    layers.SimpleRNN: _recurrent,
    layers.TimeDistributed: _time_distributed,
}
