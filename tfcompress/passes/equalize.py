"""Cross-layer equalization: channels of equal range, and the same outputs.

Example:
    ```python
    equalized, report = tfc.equalize(model, return_report=True)
    print(report)   # which kernels now share their ranges, and which cannot
    ```
"""

import dataclasses
from typing import Any

import numpy as np
from keras import layers

from tfcompress.graph import Graph, activation_name, rewrite, unchanged
from tfcompress.numerics.equalization import channel_factors
from tfcompress.passes import surgery
from tfcompress.passes.export_graph import channel_shape
from tfcompress.passes.fold import fold
from tfcompress.passes.folded_layers import beside_kernel
from tfcompress.passes.quantize_rules import activation
from tfcompress.passes.surgery import Change
from tfcompress.selection import select

_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_KERNELS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense, *_DEPTHWISE)

# Activations that scale with what goes into them: f(s * x) = s * f(x) for s > 0.
_SCALING = ("linear", "relu", "leaky_relu")

# What hands each channel on by itself and scales with it.
_CHANNELWISE = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.Dropout,
    layers.Flatten,
    layers.GaussianDropout,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.Identity,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)

# Ranges are passed back and forth along a chain until they hardly change.
_ROUNDS = 100
_SETTLED = 1e-3


def equalize(model, *, include=None, exclude=None, return_report=False):
    """Returns a model with the same outputs whose channels have like ranges.

    One scale for a whole kernel, or for a whole activation, is as coarse as the widest
    channel makes it. Where a kernel feeds another one alone, with nothing in between
    but ReLU, leaky ReLU, pooling, padding and the like, a channel can be made smaller
    before and its weights larger behind: until both kernels have the same range in each
    channel. Batch normalization is folded first (`tfc.fold`), for it would undo this.

    It is exact but for the rounding of floats. It pays most for one scale a kernel
    (`"int8_per_tensor"`) and networks with depthwise convolutions. A ReLU6 cuts all
    channels off at one height, so what lies around one is left as it is, and the report
    says so; `tfc.replace_activations(model, {"relu6": "relu"})` makes way.

    Args:
        model: Built `keras.Model`. It is not changed; nested
            models are inlined.
        include: Pattern or patterns of names of layers (after folding); only pairs of
            which both match are equalized. `None` is all.
        exclude: Pattern or patterns of layers to leave as they are.
        return_report: Whether to return the report as well.

    Returns:
        A new `keras.Model`; with `return_report` a pair of it and a `SurgeryReport`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it is not built or is wrapped, the `call` of a subclassed one
            cannot be recorded, or a pattern matches nothing.

    Reference:
        Nagel et al., 2019, section 4.1, eqs. 7 to 11. arXiv:1906.04721
    """
    before = surgery.opened(model, verb="equalize")
    graph = Graph(fold(model))
    names = [call.operation.name for call in graph.calls]
    chosen = set(select(names, include=include, exclude=exclude))
    pairs, changes = _pairs(graph, chosen)
    kernels = {id(c.operation): _Kernel(c.operation) for p in pairs for c in p.calls}
    equalized = rewrite(graph, unchanged)
    if pairs:
        _settle(pairs, kernels)
        changes += [pair.change(kernels) for pair in pairs]
        for kernel in kernels.values():
            kernel.write_to(equalized.get_layer(kernel.layer.name))
    return surgery.closed("equalize", before, equalized, changes, return_report)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Calls of two kernels between which each channel can be scaled."""

    first: Any
    second: Any

    @property
    def calls(self):
        return self.first, self.second

    def change(self, kernels):
        one, two = (kernels[id(call.operation)] for call in self.calls)
        parameters = one.layer.count_params() + two.layer.count_params()
        before, after = (_spread(one.outputs(v)) for v in (one.original, one.values))
        what = (
            f"channels equalized with those of {two.layer.name}: the widest is "
            f"{after:.3g} times the narrowest, was {before:.3g}"
        )
        return Change(one.layer.name, what, parameters, parameters)


class _Kernel:
    """A kernel and bias that are scaled, in float64.

    Attributes:
        layer: The layer.
        original: Its kernel as it was.
        values: Its kernel.
        bias: Its bias, or `None`.
    """

    def __init__(self, layer):
        self.layer = layer
        self.original = self.values = layer.kernel.numpy().astype("float64")
        self.bias = layer.bias.numpy().astype("float64") if layer.use_bias else None

    def outputs(self, values):
        """Largest weight of each output channel."""
        shape = channel_shape(self.layer)
        return np.abs(values).reshape(-1, np.prod(shape)).max(axis=0)

    def inputs(self):
        """Largest weight of each input channel."""
        size = np.abs(self.values)
        if isinstance(self.layer, _DEPTHWISE):
            return size.max(axis=-1).reshape(-1, size.shape[-2]).max(axis=0)
        groups = getattr(self.layer, "groups", 1)
        by_group = size.reshape(-1, size.shape[-2], groups, size.shape[-1] // groups)
        return by_group.max(axis=(0, 3)).T.reshape(-1)

    def divide_outputs(self, factor):
        """Makes every output channel smaller by its factor."""
        self.values = self.values / factor.reshape(channel_shape(self.layer))
        if self.bias is not None:
            self.bias = self.bias / factor

    def multiply_inputs(self, factor):
        """Makes the weights of every input channel larger by its factor."""
        self.values = self.values * beside_kernel(self.layer, factor, self.values)

    def write_to(self, layer):
        layer.kernel.assign(self.values)
        if self.bias is not None:
            layer.bias.assign(self.bias)


def _settle(pairs, kernels):
    """Equalizes pair after pair until nothing changes: chains pull both ways."""
    for _ in range(_ROUNDS):
        furthest = 0.0
        for pair in pairs:
            first, second = (kernels[id(call.operation)] for call in pair.calls)
            ranges = first.outputs(first.values)
            # Flattening repeats the channels, once for each position.
            inputs = second.inputs().reshape(-1, len(ranges))
            factor = channel_factors(ranges, inputs.max(axis=0))
            first.divide_outputs(factor)
            second.multiply_inputs(np.tile(factor, len(inputs)))
            furthest = max(furthest, np.abs(np.log(factor)).max())
        if furthest < _SETTLED:
            return


def _spread(ranges):
    ranges = ranges[ranges > 0]
    return ranges.max() / ranges.min() if len(ranges) else 1.0


def _pairs(graph, chosen):
    """The pairs there are, and a `Change` for each that a ReLU6 keeps from it."""
    counts, pairs, left = surgery.number_of_calls(graph), [], []

    def is_kernel(call):
        layer = call.operation
        return (
            type(layer) in _KERNELS
            and surgery.has_plain_kernel(layer)
            and counts[id(layer)] == 1
            and layer.name in chosen
            and getattr(layer, "data_format", "channels_last") == "channels_last"
        )

    for call in filter(is_kernel, graph.calls):
        second, cut = _next_kernel(graph, call)
        if second is None or not is_kernel(second):
            continue
        if cut is None:
            pairs.append(_Pair(call, second))
        else:
            parameters = call.operation.count_params()
            what = f"left alone: {cut} before {second.operation.name} does not scale"
            left.append(Change(call.operation.name, what, parameters, parameters))
    return pairs, left


def _next_kernel(graph, call):
    """The kernel that alone reads a call's channels, and a ReLU6 in between."""
    cut = "relu6" if activation_name(call.operation) == "relu6" else None
    if cut is None and activation_name(call.operation) not in _SCALING:
        return None, None
    while (call := graph.only_consumer(call.outputs[0])) is not None:
        if type(call.operation) in _KERNELS:
            return call, cut
        name = activation(call.operation)
        if name == "relu6":
            cut = call.operation.name
        elif name not in _SCALING and not _is_channelwise(call):
            return None, None
    return None, None


def _is_channelwise(call):
    operation = call.operation
    return (
        type(operation) in _CHANNELWISE
        and getattr(operation, "data_format", "channels_last") != "channels_first"
        and not surgery.forced_training(call)
    )
