"""Activation ranges of a quantization-aware model from examples."""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.checks import batches
from tfcompress.graph import Graph
from tfcompress.layers import FakeQuant
from tfcompress.numerics.range_estimation import METHODS, estimate_range
from tfcompress.progress import tracked

_BINS = 2048


def calibrate(model, data, *, method="minmax", percentile=99.99):
    """Sets the activation ranges of a quantization-aware model from data.

    Ranges are found without rounding of activations.

    Args:
        model: What `quantize_aware` returned, before training.
        data: As `calibration_data` of `quantize_aware`.
        method: `"minmax"` (lowest and highest value), `"moving_average"` (their mean
            over batches), `"percentile"`, `"mse"` or `"kl"` (from a histogram, for
            which the data are read a second time from memory).
        percentile: For `"percentile"`.
    """
    sites = [
        (call.operation, call.arguments.kwargs["site"], call.input_tensors[0])
        for call in Graph(model).calls
        if isinstance(call.operation, FakeQuant)
        and call.operation.fixed_range is None
        and call.arguments.kwargs["site"] is not None
    ]
    if not sites:
        return
    probe = _Probe(model, [tensor for _, _, tensor in sites])
    checked = batches(model, data, argument="calibration_data")
    seen, extremes = [], []
    for inputs, _ in tracked(checked, "Calibrating"):
        extremes.append([np.asarray(found) for found in probe.extremes(inputs)])
        if method in METHODS:
            seen.append(inputs)
    lows, highs = np.moveaxis(np.asarray(extremes, np.float64), 2, 0)
    if method == "moving_average":
        lows, highs = lows.mean(axis=0), highs.mean(axis=0)
    else:
        lows, highs = lows.min(axis=0), highs.max(axis=0)
    if method in METHODS:
        lows, highs = _from_histograms(
            sites, probe, seen, lows, highs, method, percentile
        )
    for (quantizer, site, _), low, high in zip(sites, lows, highs, strict=True):
        quantizer.set_range(site, low, high)


class _Probe:
    """Runs a model without rounding and looks at some of its tensors."""

    def __init__(self, model, tensors):
        self.model = keras.Model(model.inputs, tensors)

        @tf.function(reduce_retracing=True, autograph=False)
        def extremes(inputs):
            return [
                (
                    tf.reduce_min(tf.cast(v, tf.float32)),
                    tf.reduce_max(tf.cast(v, tf.float32)),
                )
                for v in keras.tree.flatten(self.model(inputs, training=False))
            ]

        @tf.function(reduce_retracing=True, autograph=False)
        def histograms(inputs, lows, highs):
            values = keras.tree.flatten(self.model(inputs, training=False))
            return [
                _histogram(tf.cast(v, tf.float32), lows[i], highs[i])
                for i, v in enumerate(values)
            ]

        self.extremes = extremes
        self.histograms = histograms


def _histogram(values, low, high):
    """Counts in bins of equal width; zeros of ReLU and padding are left out.

    They are exact on every grid, and so many that they would drown the rest.
    """
    kept = tf.boolean_mask(values, values != 0)
    return tf.histogram_fixed_width(kept, [low, high], nbins=_BINS)


def _from_histograms(sites, probe, seen, lows, highs, method, percentile):
    """The ranges by `method`, from histograms between the extremes."""
    lows, highs = np.minimum(lows, 0), np.maximum(highs, 0)
    safe = np.where(highs > lows, highs, lows + 1e-6)
    counts = np.zeros((len(sites), _BINS))
    for inputs in tracked(seen, "Calibrating"):
        found = probe.histograms(
            inputs, tf.constant(lows, tf.float32), tf.constant(safe, tf.float32)
        )
        counts += np.asarray([np.asarray(c) for c in found])
    results = [
        estimate_range(
            method,
            count,
            float(low),
            float(high),
            bits=quantizer.bits,
            symmetric=quantizer.symmetric,
            percentile=percentile,
        )
        if count.any()
        else (float(low), float(high))
        for (quantizer, _, _), count, low, high in zip(
            sites, counts, lows, safe, strict=True
        )
    ]
    return zip(*results, strict=True)
