"""The grids on which the weights of an export graph lie.

A converter rounds every kernel to its largest value. Where training used another grid
(fewer bits, a learned step, powers of two), the file must be told.

Example:
    ```python
    plain, weights = export_graph_and_weights(qat, batch_size=1)
    weights[0].bits, weights[0].step   # the grid that weights[0].values lie on
    ```
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfcompress.layers import (
    Binary,
    FoldedFakeQuantizeWeight,
    LearnedStep,
    Parameter,
    QuantizeWeight,
    Ternary,
    find_weight,
)
from tfcompress.numerics import affine
from tfcompress.passes.quantize_rules import KERNELS

# Largest weight of a channel below which `numerics.affine` makes the step no smaller.
_SMALLEST_RANGE = 1e-9


@dataclass(frozen=True, eq=False)
class ExportedWeight:
    """A weight of the export graph, and the grid it lies on.

    Attributes:
        name: Name of its layer.
        values: Float array as Keras lays it out, batch normalization folded in.
        bits: Width of the symmetric grid that is in force; 0 if there is none and the
            weight is float.
        step: Distance of the grid's values, an array that broadcasts to `values`; 0
            where a channel is all zeros. `None` if the weight is float, or its grid is
            not symmetric.
        per_channel: Whether each channel has a step of its own.
        channel_axes: The axes along which TFLite can have scales, `()` for weights with
            one in any case (PReLU, operands).
        in_graph: Whether the graph itself rounds it, as it does operands: converters
            store that grid by themselves.
    """

    name: str
    values: Any
    bits: int
    step: Any
    per_channel: bool
    channel_axes: tuple
    in_graph: bool = False


def exported_weights(wrapper, layer, factor=None):
    """The `ExportedWeight`s of a layer of the export graph.

    Args:
        wrapper: `TransformWeights` from which the layer was made.
        layer: The layer, with effective weights.
        factor: What its kernel was multiplied by, broadcasting to it; `None` if it was
            not.

    Returns:
        List, one for each weight that is rounded. (Biases may share values only.)
    """
    return [
        _exported_weight(wrapper, layer, name, factor)
        for name, chain in wrapper.transforms.items()
        if any(isinstance(transform, QuantizeWeight) for transform in chain)
    ]


def _exported_weight(wrapper, layer, name, factor):
    values = find_weight(layer, name).numpy()
    chain = zip(wrapper.transforms[name], wrapper.states[name], strict=True)
    found = [
        (transform, {key: v.numpy() for key, v in state.items()})
        for transform, state in chain
        if isinstance(transform, QuantizeWeight)
    ]
    transform, state = found[-1] if found else (None, {"bits": 0})
    bits = int(state["bits"])
    if isinstance(transform, (Ternary, Binary)) and bits > 0:
        bits = transform.bits
    folds = factor is not None and not isinstance(transform, FoldedFakeQuantizeWeight)
    step = None
    if bits > 0 and getattr(transform, "symmetric", True):
        rounded = wrapper.effective_weights()[name] if folds else values
        step = grid_step(rounded, bits, transform, state)
        step = step * np.abs(factor) if folds else step
    return ExportedWeight(
        name=layer.name,
        values=values,
        bits=max(bits, 0),
        step=step,
        per_channel=bool(found and transform.axes) or folds,
        channel_axes=KERNELS.get(type(layer), (name, (-1,)))[1],
        in_graph=isinstance(layer, Parameter),
    )


def grid_step(rounded, bits, transform, state):
    """Step of a symmetric grid, float64, with the rank of the rounded weight.

    Args:
        rounded: What `transform` made of the weight, float array.
        bits: Width in force, at least 2.
        transform: `QuantizeWeight`.
        state: Dict from the name of its state to an array.
    """
    if isinstance(transform, LearnedStep):
        step = transform.step_in_force(state)
        step = affine.along_axes(step, rounded, transform.axes)
        return np.asarray(step, np.float64)
    others = tuple(affine.reduced_axes(rounded, transform.axes))
    limit = np.abs(rounded.astype(np.float64)).max(axis=others, keepdims=True)
    wide = np.maximum(limit, np.where(limit > 0, _SMALLEST_RANGE, 0))
    step = wide / affine.highest_integer(bits)
    if getattr(transform, "power_of_two", False):
        # The largest weight was rounded to 64 to 127 of these steps (of 8 bits), so
        # its share of 127 rounds up to the same power.
        fraction, exponent = np.frexp(step)
        step = np.where(step > 0, np.ldexp(1.0, exponent - (fraction == 0.5)), 0.0)
    return step


def spread(bits, stored_bits=8):
    """How many steps of the stored integers one step of a coarser grid takes.

    The largest power of two that fits, so that dividing the step by it is exact and a
    step that is a power of two stays one.
    """
    most = affine.highest_integer(stored_bits) // affine.highest_integer(bits)
    return 2 ** (most.bit_length() - 1)
