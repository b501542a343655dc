"""Quantization-aware training: a model that computes as its integer file will.

Example:
    ```python
    qat = tfc.quantize_aware(model, calibration_data=x_train[:200])
    qat.compile("adam", "sparse_categorical_crossentropy")
    qat.fit(x_train, y_train, epochs=2)
    tfc.export_tflite(qat, "model.tflite", kind="int8")
    ```
"""

import keras
import tensorflow as tf

from tfcompress.checks import batches, check_model
from tfcompress.graph import (
    Graph,
    activation_name,
    built_copy,
    find_layers,
    flatten,
    rewrite,
)
from tfcompress.layers import FakeQuant, FakeQuantizeWeight, KeepZeros, TransformWeights
from tfcompress.numerics import masks
from tfcompress.passes import quantize_rules as rules
from tfcompress.passes.distill import Distiller
from tfcompress.passes.ranges import RangeGroups, ends_linear, fused
from tfcompress.progress import tracked

CONFIGS = ("int8",)


def quantize_aware(model, config="int8", *, calibration_data=None, preserve=("zeros",)):
    """Returns a copy of `model` that trains with the rounding of an int8 file.

    Weights are rounded per output channel with symmetric scales, activations per
    tensor; batch normalization that follows a kernel keeps learning and is folded at
    export, where it commutes with the rounding. Compile the result and `fit` it as
    ever; a few epochs at a tenth of the learning rate are usual.

    Args:
        model: Built functional or Sequential `keras.Model`. It is not changed.
        config: `"int8"`: weights and activations in 8 bits.
        calibration_data: Examples (arrays, a batched `tf.data.Dataset`, or an iterable
            of batches, labels allowed) from which activation ranges start. Without
            them they start from the first training batches.
        preserve: What earlier passes made and this one keeps. `("zeros",)` holds the
            zeros of pruned kernels (10 % zeros or more) at zero from here on; `()`
            lets them go.

    Returns:
        A functional `keras.Model` with the inputs and outputs of `model`, not compiled.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it is not built, has NaN weights, or has layers that cannot be
            quantized (all are named), or if the calibration data do not fit.

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2017. arXiv:1712.05877; weights per channel
        as in Krishnamoorthi, 2018, section 3. arXiv:1806.08342
    """
    check_model(model)
    _check_options(config, preserve)
    if isinstance(model, Distiller):
        raise ValueError(
            f"Model {model.name!r} is a distiller. Quantize its student, then distill "
            "that: tfc.distill(tfc.quantize_aware(distiller.student), teacher)."
        )
    if find_layers(model, FakeQuant):
        raise ValueError(
            f"Model {model.name!r} is quantization-aware already. Train it further as "
            "it is, or start again from `tfc.strip(model)`."
        )
    graph = Graph(_split_activations(flatten(model)))
    _check_supported(graph)
    quantized = rewrite(graph, _Quantizer(graph, preserve))
    if calibration_data is not None:
        calibrate(quantized, calibration_data)
    return quantized


def calibrate(model, data):
    """Sets the activation ranges of a quantization-aware model from data.

    Ranges are the smallest and largest value seen, computed without rounding.

    Args:
        model: What `quantize_aware` returned, before training.
        data: As `calibration_data` of `quantize_aware`.
    """
    calls = [
        call
        for call in Graph(model).calls
        if isinstance(call.operation, FakeQuant)
        and call.operation.fixed_range is None
        and call.arguments.kwargs["site"] is not None
    ]
    probe = keras.Model(model.inputs, [call.input_tensors[0] for call in calls])

    @tf.function(reduce_retracing=True, autograph=False)
    def extremes(inputs):
        values = keras.tree.flatten(probe(inputs, training=False))
        return [(tf.reduce_min(v), tf.reduce_max(v)) for v in values]

    lows, highs = [], []
    checked = batches(model, data, argument="calibration_data")
    for inputs, _ in tracked(checked, "Calibrating"):
        found = extremes(inputs)
        lows.append([low.numpy() for low, _ in found])
        highs.append([high.numpy() for _, high in found])
    for call, low, high in zip(
        calls,
        map(min, zip(*lows, strict=True)),
        map(max, zip(*highs, strict=True)),
        strict=True,
    ):
        call.operation.set_range(call.arguments.kwargs["site"], low, high)


class _Quantizer:
    """The visitor that wraps kernels and puts quantizers on activations."""

    def __init__(self, graph, preserve):
        self.graph = graph
        self.groups = RangeGroups(graph)
        self.preserve = preserve
        self.quantizers = {}
        self.wrappers = {}
        self.rounded_inputs = {}

    def __call__(self, call, clone, args, kwargs):
        operation, output = call.operation, call.outputs[0]
        args, kwargs = self._round_inputs(call, args, kwargs)
        if isinstance(operation, tuple(rules.KERNELS)):
            result = self._wrapped(operation)(*args, **kwargs)
        else:
            result = clone(operation)(*args, **kwargs)
        if id(output) in self.groups.sites:
            return self._quantize(output, result, self.groups.sites[id(output)])
        if isinstance(operation, rules.SAME_SCALE):
            return self._quantize(output, result, None)
        return result

    def _round_inputs(self, call, args, kwargs):
        """Rounds model inputs where they are read, each once."""
        for old in call.input_tensors:
            if any(old is t for t in self.graph.inputs):
                new = _argument(call, old, args, kwargs)
                if id(old) not in self.rounded_inputs:
                    rounded = self._quantize(old, new, self.groups.sites[id(old)])
                    self.rounded_inputs[id(old)] = rounded
                args, kwargs = _swap((args, kwargs), new, self.rounded_inputs[id(old)])
        return args, kwargs

    def _quantize(self, tensor, value, site):
        group = self.groups.group(tensor)
        if group not in self.quantizers:
            fixed = self.groups.fixed_range(tensor)
            self.quantizers[group] = FakeQuant(
                sites=self.groups.site_count(tensor),
                fixed_range=fixed,
                in_training=not (fixed and self._is_result(group)),
                name=f"{self.groups.name(tensor)}_quant",
            )
        return self.quantizers[group](value, site=site)

    def _is_result(self, group):
        return any(self.groups.group(t) == group for t in self.graph.outputs)

    def _wrapped(self, operation):
        if id(operation) not in self.wrappers:
            name, axes = rules.KERNELS[type(operation)]
            layer = built_copy(operation)
            chain = [FakeQuantizeWeight(bits=8, axes=axes)]
            weight = next(v for v in layer.weights if v.name == name)
            if (
                "zeros" in self.preserve
                and masks.kept_zeros(weight.numpy()) is not None
            ):
                chain.insert(0, KeepZeros())
            self.wrappers[id(operation)] = TransformWeights(layer, {name: chain})
        return self.wrappers[id(operation)]


def _argument(call, old, args, kwargs):
    """The new tensor that stands where `old` stood in the call."""
    flat_old = keras.tree.flatten((call.arguments.args, call.arguments.kwargs))
    flat_new = keras.tree.flatten((args, kwargs))
    return next(n for o, n in zip(flat_old, flat_new, strict=True) if o is old)


def _swap(structure, old, new):
    return keras.tree.map_structure(lambda t: new if t is old else t, structure)


def _split_activations(model):
    """Makes activations that TFLite does not fuse layers of their own."""
    graph = Graph(model)
    if not any(_splits(call.operation) for call in graph.calls):
        return model
    parts = {}

    def visit(call, clone, args, kwargs):
        operation = call.operation
        if not _splits(operation):
            return clone(operation)(*args, **kwargs)
        if id(operation) not in parts:
            parts[id(operation)] = (
                built_copy(operation, activation="linear"),
                _activation_layer(operation),
            )
        linear, activation = parts[id(operation)]
        return activation(linear(*args, **kwargs))

    return rewrite(graph, visit)


def _activation_layer(operation):
    function = operation.activation
    if isinstance(function, keras.layers.Layer):
        return type(function).from_config(function.get_config())
    name = f"{operation.name}_{activation_name(operation)}"
    return keras.layers.Activation(function, name=name)


def _splits(operation):
    return (
        isinstance(operation, rules.CONVOLUTIONS)
        and activation_name(operation) not in rules.FUSED_ACTIVATIONS
    )


def _check_options(config, preserve):
    if config not in CONFIGS:
        raise ValueError(
            f"`config` must be one of {CONFIGS}. Received: config={config!r}"
        )
    if set(preserve) - {"zeros"}:
        raise ValueError(
            f"`preserve` may hold 'zeros' or nothing. Received: preserve={preserve!r}"
        )


def _check_supported(graph):
    wrong = []
    for call in graph.calls:
        operation = call.operation
        if isinstance(operation, keras.layers.BatchNormalization):
            if not _folds(graph, call):
                wrong.append(
                    f"{_describe(operation)}: must directly follow a convolution or "
                    "Dense without activation, which nothing else reads"
                )
        elif not rules.supported(operation):
            wrong.append(_describe(operation))
    wrong += [
        f"{_describe(graph.producer(tensor).operation)}: TFLite prescribes its scale, "
        f"which {join.operation.name!r} would have to share; concatenate before it"
        for join, tensor in RangeGroups(graph).conflicts
    ]
    wrong += [
        f"input {t.name!r} of type {t.dtype}"
        for t in graph.inputs
        if not keras.backend.is_float_dtype(t.dtype)
    ]
    if wrong:
        raise ValueError(
            f"Cannot quantize {len(wrong)} layer(s) of model {graph.model.name!r}:\n  "
            + "\n  ".join(dict.fromkeys(wrong))
            + f"\nSupported: {', '.join(rules.supported_names())}."
        )


def _folds(graph, call):
    producer = graph.producer(call.input_tensors[0])
    rank = len(call.input_tensors[0].shape)
    return (
        producer is not None
        and ends_linear(producer.operation)
        and fused(graph, producer)
        and call.operation.axis in (-1, rank - 1)
    )


def _describe(operation):
    name = rules.activation(operation)
    kind = f"activation {name!r}" if name else type(operation).__name__
    return f"{operation.name!r} ({kind})"
