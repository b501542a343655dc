"""Models of TensorFlow Model Optimization, as Keras 3 models.

Example:
    ```python
    model = tfc.from_tfmot(qat_model)           # or a path of an .h5 file
    tfc.export_tflite(model, "model.tflite", kind="int8")
    ```
"""

import dataclasses
import os
import re
from dataclasses import dataclass

import keras
import numpy as np
from absl import logging

from tfcompress.checks import is_legacy_model
from tfcompress.graph import Graph, find_layers
from tfcompress.layers import FakeQuant, LearnedStep, TransformWeights, find_weight
from tfcompress.legacy.build import build
from tfcompress.legacy.load import checked_path, legacy_description
from tfcompress.legacy.read import described
from tfcompress.numerics.affine import reduced_axes
from tfcompress.passes.quantization_config import QuantizationConfig
from tfcompress.passes.quantize import quantize_aware
from tfcompress.passes.quantize_rules import KERNELS
from tfcompress.selection import Rule


@dataclass(frozen=True)
class TFMOTReport:
    """What of a quantization-aware model was kept; printed, it is a text.

    Attributes:
        grids: Names of the layers whose weights have TFMOT's grid.
        ranges: Names of the quantizers that have TFMOT's range.
        merged: Names of quantizers whose range spans several of TFMOT's, because TFLite
            has one scale there.
        missing: Names of quantizers for which TFMOT has no range: they have that of
            the calibration data, or learn one in training.
        unused: Names of layers whose range by TFMOT is of no tensor of the file.
        floats: Names of the layers that TFMOT left float, and that stay so; what is
            rounded behind them is.
    """

    grids: tuple = ()
    ranges: tuple = ()
    merged: tuple = ()
    missing: tuple = ()
    unused: tuple = ()
    floats: tuple = ()

    def __str__(self):
        lines = [
            f"{len(self.grids)} grids of weights and {len(self.ranges)} ranges kept"
        ]
        for what, names in (
            ("one scale in TFLite, several in TFMOT", self.merged),
            ("no range in TFMOT", self.missing),
            ("range that no tensor of the file has", self.unused),
            ("float in TFMOT, and here", self.floats),
        ):
            if names:
                lines.append(f"{what}: {', '.join(names)}")
        return "\n".join(lines)


def from_tfmot(
    model, *, calibration_data=None, custom_objects=None, return_report=False
):
    """Turns a model of `tf_keras`, with TFMOT's wrappers or not, into a Keras 3 one.

    Pruned weights stay pruned, clustered ones are at their centroids, and both come
    back as a plain model. A quantization-aware one becomes what
    `tfc.quantize_aware` returns, with the same ranges of activations and grids of
    weights (as learned steps, which hold any grid), ready to train further or to
    export. Layers that TFMOT left float stay float, and the report names them. TFMOT is
    not imported.

    Args:
        model: Functional or Sequential `tf_keras` model; or a path of an `.h5` file
            that holds one.
        calibration_data: For a quantization-aware model: examples, as
            `quantize_aware` takes them, for the activations that TFMOT does not round
            and TFLite must.
        custom_objects: Dict from class names in the model to classes of Keras 3.
        return_report: Whether to return the `TFMOTReport` as well.

    Returns:
        A `keras.Model`, not compiled; with `return_report` a pair of it and the
        report, `None` for a model that is not quantization-aware.

    Raises:
        TypeError: If `model` is neither a `tf_keras` model nor a path.
        FileNotFoundError: If there is no such file.
        ValueError: If something has no counterpart in Keras 3; names all of that.
    """
    description = _description(model)
    built = build(description, custom_objects)
    report = None
    result = built.model
    if built.quantizations:
        result, report = _quantization_aware(built, calibration_data)
        logging.info("from_tfmot: %s", report)
    elif calibration_data is not None:
        raise ValueError(
            f"Model {result.name!r} has no quantization of TFMOT's, so there is "
            "nothing to calibrate. Pass the data to tfc.quantize_aware."
        )
    return (result, report) if return_report else result


def _description(model):
    if isinstance(model, (str, os.PathLike)):
        description = legacy_description(checked_path(model))
        if description is None:
            raise ValueError(
                f"{os.fspath(model)!r} was not written by Keras 2. Load it with "
                "tfc.load_model."
            )
        return description
    if isinstance(model, keras.Model):
        raise TypeError(
            f"`model` {model.name!r} is a Keras 3 model already; use it as it is."
        )
    if not is_legacy_model(model):
        raise TypeError(
            "`model` must be a tf_keras model or the path of one. Received: "
            f"{model!r} (of type {type(model).__name__})"
        )
    return described(model)


def _quantization_aware(built, calibration_data):
    bits = {q.bits for q in built.quantizations.values() if q.steps} or {8}
    if len(bits) > 1:
        raise ValueError(
            f"Model {built.model.name!r} has weights of {sorted(bits)} bits. Quantize "
            "the float model with tfc.quantize_aware and rules instead."
        )
    config = QuantizationConfig(weights="learned_step", weight_bits=bits.pop())
    floats = _floats(built)
    model = quantize_aware(
        built.model,
        config,
        calibration_data=calibration_data,
        rules=_float_rules(floats),
        preserve=(),
    )
    grids = _set_steps(model, built.quantizations)
    report = _set_ranges(model, built.quantizations, grids)
    return model, dataclasses.replace(report, floats=tuple(floats))


def _floats(built):
    """Names of layers without a wrapper, or whose wrapper rounds their output alone."""
    kernels = tuple(KERNELS)
    layers = {layer.name: layer for layer in built.model.layers}
    return built.plain + [
        name
        for name, quantization in built.quantizations.items()
        if isinstance(layers.get(name), kernels) and not quantization.steps
    ]


def _float_rules(names):
    """Rules that leave the layers of these names, and what is in them, float."""
    listed = "|".join(map(re.escape, names))
    return [Rule(f"^({listed})(/|$)", quantize=False)] if names else []


def _set_steps(model, quantizations):
    """Sets the grids of weights; returns the names of their layers."""
    found = []
    for wrapper in find_layers(model, TransformWeights):
        quantization = quantizations.get(wrapper.layer.name)
        for name, chain in wrapper.transforms.items():
            for transform, state in zip(chain, wrapper.states[name], strict=True):
                if not isinstance(transform, LearnedStep) or quantization is None:
                    continue
                if len(quantization.steps) == 1:
                    (step,) = quantization.steps.values()
                    weight = find_weight(wrapper.layer, name)
                    state["step"].assign(_spread(step, weight.shape, transform.axes))
                    found.append(wrapper.layer.name)
    return found


def _spread(step, shape, axes):
    """TFMOT's step, one or one a channel, as one for each index of `axes`."""
    full = np.zeros(shape, np.float32)
    # TFMOT's channels are the last axis, of a transposed convolution the last but one.
    if step.size > 1 and step.size != shape[-1]:
        step = step.reshape(-1, 1)
    full += step
    return full.max(axis=tuple(reduced_axes(full, axes))).reshape(-1)


def _set_ranges(model, quantizations, grids):
    """Sets the ranges of activations; returns the `TFMOTReport`."""
    graph = Graph(model)
    spans, sites, used = {}, {}, set()
    for call in graph.calls:
        quantizer = call.operation
        site = call.arguments.kwargs.get("site")
        if not isinstance(quantizer, FakeQuant) or quantizer.fixed_range is not None:
            continue
        if site is None:
            continue
        sites.setdefault(quantizer.name, []).append(site)
        name, which = _rounded(graph, call.input_tensors[0], quantizations)
        limits = None if name is None else getattr(quantizations[name], which)
        if limits is not None:
            low, high = (float(np.asarray(limit)) for limit in limits)
            quantizer.ends_on_grid = False
            quantizer.set_range(site, low, high)
            spans.setdefault(quantizer.name, set()).add((min(low, 0), max(high, 0)))
            used.add((name, which))
    told = {
        (name, which)
        for name, quantization in quantizations.items()
        for which in ("before", "after")
        if getattr(quantization, which) is not None
    }
    return TFMOTReport(
        grids=tuple(grids),
        ranges=tuple(sorted(spans)),
        merged=tuple(sorted(n for n, found in spans.items() if len(found) > 1)),
        missing=tuple(sorted(set(sites) - set(spans))),
        unused=tuple(sorted({name for name, _ in told - used})),
    )


def _rounded(graph, tensor, quantizations):
    """The layer of the old model that a tensor comes from, and the side of it."""
    call = graph.producer(tensor)
    name = tensor.name if call is None else call.operation.name
    if name in quantizations:
        # A layer whose activation is rounded before and after is two by now.
        split = quantizations[name].before is not None
        return name, "before" if split else "after"
    for owner, quantization in quantizations.items():
        if quantization.before is not None and name.startswith(f"{owner}_"):
            return owner, "after"
    return None, None
