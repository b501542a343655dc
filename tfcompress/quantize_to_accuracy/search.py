"""The search for as few float layers as suffice.

Example:
    ```python
    search = Search(model, seen, Evaluation(evaluate, False), 0.01, {})
    quantized = search.run(config, "float", 0.5)   # None if nothing is within 0.01
    ```
"""

import dataclasses
import math
import pathlib
import tempfile

from tfcompress.debug import debug_quantization
from tfcompress.deploy.tflite import export_tflite
from tfcompress.graph import Graph, find_layers
from tfcompress.layers import (
    FakeQuant,
    FusedBatchNormalization,
    NormalizedKernel,
    TransformWeights,
)
from tfcompress.passes.calibration import calibrate
from tfcompress.passes.post_training import quantize_post_training
from tfcompress.passes.quantize import quantize_aware
from tfcompress.quantize_to_accuracy.report import AccuracyReport, Attempt
from tfcompress.selection import Rule

_EXAMPLES = 64


class Evaluation:
    """Asks the user's function for the number of a model."""

    def __init__(self, function, on_files):
        self.function = function
        self.on_files = on_files

    def __call__(self, model, kind):
        if not self.on_files:
            return _number(self.function(model))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.tflite")
            allowed = () if kind == "float32" else (".*",)
            export_tflite(model, path, kind=kind, io="float32", allow_float=allowed)
            return _number(self.function(str(path)))


def _number(value):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            "`evaluate` must return a finite number, higher for better. Received: "
            f"{value!r}"
        )
    return number


class Search:
    """The attempts, and the models that came of them."""

    def __init__(self, model, seen, evaluation, allowed_drop, settings):
        self.model = model
        self.seen = seen
        self.evaluation = evaluation
        self.allowed_drop = allowed_drop
        self.settings = settings
        self.attempts = []
        self.chosen = None

    def run(self, config, fallback, most_float):
        """The quantized model, or `None` if none is within the limit."""
        self.baseline = self.evaluation(self.model, "float32")
        self.advance()
        whole = self._whole(config)
        if self._within(whole, config, ()):
            return whole
        if fallback == "int16" and config.activation_bits == 8:
            config = dataclasses.replace(
                config, activation_bits=16, symmetric_activations=True
            )
            whole = self._whole(config)
            if self._within(whole, config, ()):
                return whole
        worst = self._ranking(whole)
        return self._fewest(whole, config, worst[: int(most_float * len(worst))])

    def report(self):
        """The `AccuracyReport`."""
        return AccuracyReport(
            self.baseline, self.allowed_drop, tuple(self.attempts), self.chosen
        )

    def _whole(self, config):
        return quantize_post_training(
            self.model, iter(self.seen), config, **self.settings
        )

    def _within(self, quantized, config, layers):
        kind = "int8" if config.activation_bits == 8 else "int16x8"
        accuracy = self.evaluation(quantized, kind)
        self.attempts.append(Attempt(config.activation_bits, layers, accuracy))
        self.advance()
        within = self.baseline - accuracy <= self.allowed_drop
        if within:
            self.chosen = self.attempts[-1]
        return within

    def _ranking(self, quantized):
        """Operations to leave float for each rounded tensor, the worst tensor first."""
        rows = debug_quantization(
            quantized, data=iter(self.seen), examples=_EXAMPLES
        ).layers
        readers, joined = _readers(quantized), _joined(quantized)
        ranking = []
        for row in rows:
            names = list(row.operations)
            if _by_activations(row):
                # A tensor is not rounded once all that reads it is float, too.
                names += [
                    name
                    for other in rows
                    if readers.get(row.name, set()) & set(other.operations)
                    for name in other.operations
                ]
            names += [joined[name] for name in names if name in joined]
            ranking.append(tuple(dict.fromkeys(names)))
        return [names for names in ranking if names]

    def _fewest(self, whole, config, worst):
        """Leaves as few of the worst float as suffice."""
        low, count, found = 0, 1, None
        while found is None and low < len(worst):
            count = min(count, len(worst))
            found = self._attempt(whole, config, worst[:count])
            low, count = (count, 2 * count) if found is None else (low, count)
        if found is None:
            return None
        best, chosen = found, self.chosen
        while count - low > 1:
            middle = (low + count) // 2
            found = self._attempt(whole, config, worst[:middle])
            if found is None:
                low = middle
            else:
                best, chosen, count = found, self.chosen, middle
        self.chosen = chosen
        return best

    def _attempt(self, whole, config, worst):
        """The model with some layers float, if it is within the limit."""
        names = tuple(dict.fromkeys(name for row in worst for name in row))
        quantized = _with_floats(self.model, whole, config, names, self.settings)
        calibrate(
            quantized,
            iter(self.seen),
            method=config.ranges,
            percentile=config.percentile,
        )
        return quantized if self._within(quantized, config, names) else None


def _by_activations(row):
    """Whether rounding the output costs more than rounding the weights."""
    return row.weights is None or row.output.sqnr_db < row.weights.sqnr_db


def _readers(quantized):
    """Dict from what computes a rounded tensor to the names of what reads it."""
    graph, found = Graph(quantized), {}
    for call in graph.calls:
        if isinstance(call.operation, FakeQuant):
            tensor = call.input_tensors[0]
            producer = graph.producer(tensor)
            name = tensor.name if producer is None else producer.operation.name
            readers = graph.consumers(call.outputs[0])
            found.setdefault(name, set()).update(c.operation.name for c in readers)
    return found


def _joined(quantized):
    """Dict from kernels to the batch normalization that is one with them."""
    return {
        wrapper.name: wrapper.layer.normalization.name
        for wrapper in find_layers(quantized, TransformWeights)
        if isinstance(wrapper.layer, NormalizedKernel)
    }


def _with_floats(model, whole, config, names, settings):
    """`model` quantized but for some operations, with the weights of `whole`."""
    floats, passed = set(names), ("rules", "allow_float", "preserve")
    given = {key: settings[key] for key in passed if key in settings}
    # Parts of a rewritten layer have its path before their names.
    rule = Rule(lambda path: path.split("/")[-1] in floats, quantize=False)
    given["rules"] = [rule, *given.get("rules", ())]
    quantized = quantize_aware(model, config, **given)
    kinds = (TransformWeights, FusedBatchNormalization)
    sources = {layer.name: layer for layer in find_layers(whole, kinds)}
    for layer in find_layers(quantized, kinds):
        if layer.name in sources:
            layer.set_weights(sources[layer.name].get_weights())
    return quantized
