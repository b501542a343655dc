"""From a quantization-aware model to the bytes of an integer `.tflite` file.

Example:
    ```python
    content, stored = integer_file(qat, kind="int8", io="int8", batch_size=1)
    ```
"""

import numpy as np

from tfcompress.deploy import int16x8
from tfcompress.deploy.converter import convert, int8_settings
from tfcompress.deploy.float_border import (
    float_kernels,
    with_borders,
    without_borders,
)
from tfcompress.deploy.low_bits import StoredWeights, store_low_bits
from tfcompress.graph import find_layers
from tfcompress.layers import FakeQuant
from tfcompress.numerics.affine import reduced_axes
from tfcompress.passes.export_graph import export_graph_and_weights

_ACTIVATION_BITS = {"int8": 8, "int16x8": 16}


def integer_file(model, *, kind, io, batch_size=1, pack="dense", keep_float=False):
    """Converts a quantization-aware model, with every weight on the grid it learned.

    Args:
        model: What `quantize_aware` returned, trained or calibrated.
        kind: `"int8"` or `"int16x8"`, as the model was trained.
        io: Type of inputs and outputs.
        batch_size: Batch size of the file; `None` leaves it open.
        pack: As for `store_low_bits`.
        keep_float: Whether kernels that the model leaves float are so in the file, too;
            else the converter computes them in integers where it can.

    Returns:
        Bytes of the file, and a `StoredWeights` of the weights whose grid the converter
        would not have found.

    Raises:
        ValueError: If `kind` is not how the model was trained, a weight has no grid
            that TFLite can store, or the converter refuses the model.
    """
    _check_activation_bits(model, kind)
    plain, weights = export_graph_and_weights(model, batch_size=batch_size)
    check_weights(weights, model, "A TFLite file")
    floats = float_kernels(model) if keep_float else ()
    plain, borders = with_borders(plain, floats)
    if kind == "int8":
        content = convert(plain, batch_size, int8_settings(io))
    else:
        plain = int16x8.widen_activations(plain, batch_size=batch_size)
        content = convert(plain, batch_size, int16x8.settings(io))
        content = int16x8.make_runnable(content)
    content = without_borders(content, borders)
    kernels = [w for w in weights if w.channel_axes]
    one_scale = bool(kernels) and not any(w.per_channel for w in kernels)
    told = [
        (w.values, w.bits, w.step)
        for w in weights
        if not w.in_graph and (one_scale or not _as_converted(w))
    ]
    if not told:
        return content, StoredWeights()
    return store_low_bits(content, told, pack=pack, one_scale=one_scale)


def _check_activation_bits(model, kind):
    found = sorted({quantizer.bits for quantizer in find_layers(model, FakeQuant)})
    fitting = _ACTIVATION_BITS[kind]
    if found == [fitting]:
        return
    right = {(8,): "int8", (16,): "int16x8"}.get(tuple(found))
    advice = f"Pass kind={right!r}, or train" if right else "Train"
    raise ValueError(
        f"Model {model.name!r} was trained with activations of "
        f"{' and '.join(map(str, found))} bits; kind={kind!r} has {fitting}. {advice} "
        f"what tfc.quantize_aware(model, {kind!r}) returns."
    )


def _as_converted(weight):
    """Whether the converter finds the weight's grid by itself."""
    others = tuple(reduced_axes(weight.values, weight.channel_axes))
    limit = np.abs(weight.values).max(axis=others, keepdims=True)
    # Where all is zero, any grid will do.
    equal = np.isclose(limit, 127 * weight.step, rtol=1e-6, atol=0) | (limit == 0)
    return weight.bits == 8 and bool(equal.all())


def check_weights(weights, model, file):
    """Raises unless all weights lie on symmetric grids of 8 bits or less.

    Args:
        weights: List of `ExportedWeight`s.
        model: The model they are of.
        file: What is to be written, `"A TFLite file"`.
    """
    floats = [w.name for w in weights if w.bits == 0]
    if floats:
        raise ValueError(
            f"{len(floats)} weight(s) of model {model.name!r} are not rounded now "
            f"({floats[0]!r}, ...): their bits are 0. Train on until the schedule of "
            "bits gives them some, or leave those layers float by "
            "tfc.Rule(..., quantize=False)."
        )
    wide = [f"{w.name!r} ({w.bits} bits)" for w in weights if w.bits > 8]
    if wide:
        raise ValueError(
            f"{file} has weights of 8 bits or less. Received: {', '.join(wide)} "
            f"in model {model.name!r}. Train with weight_bits=8."
        )
    skewed = [repr(w.name) for w in weights if w.step is None]
    if skewed:
        raise ValueError(
            f"{file} has weights with symmetric grids only; those of "
            f"{', '.join(skewed)} are not. Train with symmetric_weights=True."
        )
