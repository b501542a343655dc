"""Convolutions as depthwise and 1x1 ones, started from the kernels there are.

Example:
    ```python
    smaller, report = tfc.separate_convs(model, return_report=True)
    print(report)                    # relative error of each kernel
    smaller.compile("adam", "sparse_categorical_crossentropy")
    smaller.fit(x, y)
    ```
"""

import math

from keras import layers

from tfcompress.graph import rewrite
from tfcompress.numerics import factorization
from tfcompress.passes import surgery
from tfcompress.passes.factor_layers import (
    Part,
    equal_strides,
    factor_layers,
    number_of_parameters,
    point,
    whole,
)
from tfcompress.passes.factor_methods import METHODS
from tfcompress.passes.factorize import chained
from tfcompress.passes.lowering import parts as lowered
from tfcompress.passes.surgery import Change
from tfcompress.selection import select

_SETTINGS = ("depth_multiplier", "rank")


def separate_convs(
    model,
    *,
    depth_multiplier=1,
    rank=None,
    rules=(),
    include=None,
    exclude=None,
    return_report=False,
):
    """Returns a model with depthwise-separable convolutions in the place of k x k ones.

    Each Conv2D of more than 1x1 becomes a DepthwiseConv2D and a 1x1 Conv2D (a Conv1D
    the same in one dimension) whose product is the least-squares approximation of its
    kernel; with `rank`, a 1x1, a depthwise and a 1x1 convolution (a bottleneck). Most
    kernels are far from separable: see the errors, and train on. What would not get
    smaller is left alone, and the report says so. Grouped convolutions are not
    considered.

    Args:
        model: Built `keras.Model`. It is not changed; nested
            models are inlined.
        depth_multiplier: Depthwise outputs of each input channel, from 1; at most as
            many as help.
        rank: Channels of the bottleneck, from 1; `None` has no bottleneck.
        rules: `tfc.Rule`s on layer names, first match wins, with `depth_multiplier=`
            or `rank=`.
        include: Pattern or patterns of layer names; others are left alone.
        exclude: Pattern or patterns of layer names to leave alone.
        return_report: Whether to return the report as well.

    Returns:
        A new `keras.Model`; with `return_report` a pair of it and a `SurgeryReport`
        with the relative Frobenius error of each kernel.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If the model cannot be rewritten or has no such convolution, a
            setting is out of range, or a pattern matches nothing.

    Reference:
        Guo et al., "Network Decoupling", 2018, eq. 4. arXiv:1808.05517; the bottleneck
        is a CP decomposition, Lebedev et al., 2014, eq. 3. arXiv:1412.6553
    """
    graph = surgery.opened(model, verb="separate_convs")
    common = {"depth_multiplier": depth_multiplier, "rank": rank}
    _check(common, "`tfc.separate_convs`")
    found = _convolutions(graph)
    chosen = select(found, include=include, exclude=exclude, rules=rules)
    taken = {call.operation.name for call in graph.calls}
    changes, chains = [], {}
    for name, own in chosen.items():
        _check(own, f"The rule for layer {name!r}")
        # A multiplier of its own is a wish for no bottleneck.
        settings = {"depth_multiplier": 1, "rank": None, **own} if own else common
        chain, change = _separated(found[name], settings, taken)
        changes.append(change)
        if chain:
            chains[name] = chain
    separated = rewrite(graph, chained(chains))
    return surgery.closed("separate_convs", graph, separated, changes, return_report)


def _convolutions(graph):
    found = {
        call.operation.name: call.operation
        for call in graph.calls
        if type(call.operation) in (layers.Conv1D, layers.Conv2D)
        and surgery.has_plain_kernel(call.operation)
        and max(call.operation.kernel_size) > 1
        and call.operation.groups == 1
    }
    if not found:
        kinds = sorted({type(call.operation).__name__ for call in graph.calls})
        raise ValueError(
            "`tfc.separate_convs` needs Conv1D or Conv2D layers of more than 1x1 and "
            f"one group. Received: model {graph.model.name!r} of {', '.join(kinds)}"
        )
    return found


def _separated(layer, settings, taken):
    """The layers in the place of one (`None` if it stays), and the `Change`."""
    before = layer.count_params()

    def stays(reason):
        return None, Change(layer.name, f"left alone: {reason}", before, before)

    if not equal_strides(layer):
        return stays("depthwise convolutions need equal strides")
    if layer.padding == "causal":
        return stays("depthwise convolutions have no causal padding")
    kernel = lowered.numpy(layer.kernel)
    if settings["rank"] is not None:
        rank = settings["rank"]
        if METHODS["cp"].parameters(kernel.shape, rank) >= kernel.size:
            return stays("not smaller")
        found, together = METHODS["cp"].parts(layer, kernel, rank)
        what = f"1x1, depthwise, 1x1 of {rank} channels"
    else:
        found, together = _two_parts(layer, kernel, settings["depth_multiplier"])
        what = "depthwise, 1x1"
        if number_of_parameters(found) >= kernel.size:
            return stays("not smaller")
    chain = factor_layers(layer, found, taken=taken)
    after = sum(part.count_params() for part in chain)
    error = factorization.relative_error(kernel, together)
    return chain, Change(layer.name, what, before, after, error)


def _two_parts(layer, kernel, multiplier):
    *places, inputs, outputs = kernel.shape
    multiplier = min(multiplier, math.prod(places), outputs)
    depthwise, pointwise = factorization.separable(kernel, multiplier)
    by_channel = pointwise.reshape(inputs, multiplier, outputs)
    # (..., in, 1, multiplier) @ (in, multiplier, out)
    together = (depthwise[..., None, :] @ by_channel)[..., 0, :]
    found = [
        Part(depthwise, depthwise=True, geometry=whole(layer)),
        point(layer, pointwise),
    ]
    return found, together


def _check(settings, who):
    unknown = sorted(set(settings) - set(_SETTINGS))
    if unknown:
        raise ValueError(
            f"{who} may set {' or '.join(_SETTINGS)}. Received: {', '.join(unknown)}"
        )
    for name, value in settings.items():
        if name == "rank" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{who} needs a whole `{name}` from 1 on. Received: {name}={value!r}"
            )
    if settings.get("rank") is not None and settings.get("depth_multiplier", 1) != 1:
        raise ValueError(
            f"{who} takes `depth_multiplier` or `rank`, not both: a bottleneck has one "
            f"depthwise output a channel. Received: {settings}"
        )
