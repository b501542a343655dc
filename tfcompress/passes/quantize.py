"""Quantization-aware training: a model that computes as its integer file will.

Example:
    ```python
    qat = tfc.quantize_aware(model, calibration_data=x_train[:200])
    qat.compile("adam", "sparse_categorical_crossentropy")
    qat.fit(x_train, y_train, epochs=2)
    tfc.export_tflite(qat, "model.tflite", kind="int8")
    ```
"""

import re
from collections.abc import Iterable

import keras
import numpy as np

from tfcompress.checks import check_model
from tfcompress.graph import (
    Graph,
    built_copy,
    find_layers,
    flatten,
    functional,
    has_mask,
    rewrite,
    unchanged,
)
from tfcompress.layers import (
    FakeQuant,
    FoldedFakeQuantizeWeight,
    FusedBatchNormalization,
    KeepZeros,
    NormalizedKernel,
    TransformWeights,
    find_weight,
)
from tfcompress.numerics import masks
from tfcompress.passes import quantize_rules as table
from tfcompress.passes.calibration import calibrate
from tfcompress.passes.distill import Distiller
from tfcompress.passes.kept_codebooks import KeptCodebooks
from tfcompress.passes.lowering import functional_form, lower
from tfcompress.passes.quantization_config import resolved
from tfcompress.passes.ranges import RangeGroups, folds, is_float, over_last_axis
from tfcompress.passes.strip import strip
from tfcompress.selection import check_rules, select, settings_of

# What the name of a layer may not hold.
_UNSCOPED = re.compile(r"[^A-Za-z0-9_.>-]")


def quantize_aware(
    model,
    config="int8",
    *,
    calibration_data=None,
    rules=(),
    allow_float=(),
    preserve=("zeros", "clusters"),
):
    """Returns a copy of `model` that trains with the rounding of an integer file.

    Layers that TFLite has no integer form of are rewritten into operations that have
    one (attention, normalization, recurrent layers step by step, subclassed models),
    those with channels first into the same with channels last.
    Weights are rounded per output channel with symmetric scales, activations per
    tensor; batch normalization that follows a kernel keeps learning and is folded at
    export, where it commutes with the rounding. Compile the result and `fit` it as
    ever; a few epochs at a tenth of the learning rate are usual.

    Args:
        model: Built `keras.Model`. It is not changed. A subclassed one needs a
            `get_config`, and a `call` of Keras layers and `keras.ops`.
        config: `"int8"`; `"int8_per_tensor"` (one scale a weight, for old readers);
            `"int16x8"` (activations in 16 bits); `"int4_weights"`; or a
            `tfc.QuantizationConfig`.
        calibration_data: Examples (arrays, a batched `tf.data.Dataset`, or an iterable
            of batches, labels allowed) from which activation ranges start; for a
            trained model. Without them they start from the first training batches, as
            they should for one with random weights, whose batch statistics are not
            those of training yet.
        rules: `tfc.Rule`s on the names of layers, first match wins: settings of
            `tfc.QuantizationConfig`, or `quantize=False` to leave a layer float.
            Parts of a rewritten layer have its path: `"mha/mha_query"`.
        allow_float: Patterns of layers that may stay float if they have no integer
            form. All others raise.
        preserve: What earlier passes made and this one keeps. `"zeros"` holds the
            zeros of pruned kernels (10 % zeros or more) at zero from here on.
            `"clusters"` puts the quantizer behind the codebook of a kernel that
            `tfc.cluster` made, or starts one for a plain kernel of few different values
            (64 at most, each 8 times or more); each channel has at most as many
            different integers then. Weights start at their values of the codebook, and
            layers that shared one have one each. `()` keeps nothing.

    Returns:
        A functional `keras.Model` with the inputs and outputs of `model`, not compiled.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it is not built, has NaN weights, or has layers that cannot be
            quantized (all are named), if a rule matches nothing, or if the calibration
            data do not fit.

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2017. arXiv:1712.05877; weights per channel
        as in Krishnamoorthi, 2018, section 3. arXiv:1806.08342
    """
    check_model(model)
    config = resolved(config)
    _check_rules(rules)
    _check_preserve(preserve)
    _check_model_is_plain(model)
    kept = KeptCodebooks.of(model)
    model = strip(model) if kept.chains else model
    prepared = _Prepared(model, rules, allow_float, config.activation_bits)
    settings = _settings(prepared, config, rules)
    visitor = _Quantizer(prepared, config, settings, preserve, kept)
    quantized = rewrite(prepared.graph, visitor)
    if calibration_data is not None:
        calibrate(
            quantized,
            calibration_data,
            method=config.ranges,
            percentile=config.percentile,
        )
    return quantized


class _Prepared:
    """A model of operations that can be quantized.

    Attributes:
        graph: Its `Graph`.
        origins: Dict from the name of an operation to the layers it is part of.
        floats: Names of operations that stay float.
        identities: Names of operations that are the identity at inference.
    """

    def __init__(self, model, user_rules, allow_float, bits):
        if functional(model) is None:
            model = functional_form(model)
        flat = flatten(model, keep_subclassed=True)
        names = [call.operation.name for call in Graph(flat).calls]
        allowed = set()
        if allow_float:
            allowed |= set(select(names, include=allow_float, argument="allow_float"))
        self.floats = {n for n in names if _left_float(n, user_rules)}
        lowered = lower(flat, keep=self.floats)
        self.origins, self.identities = lowered.origins, lowered.identities
        self.graph = Graph(_integer_inputs(lowered.model))
        self.floats |= {
            call.operation.name
            for call in self.graph.calls
            if _left_float(self.path(call.operation), user_rules)
        }
        wrong = _unsupported(self, lowered.failures, bits)
        self.floats |= allowed & set(wrong)
        _check_none(wrong, self.floats, model)

    def path(self, operation):
        """Where an operation is: `"mha/mha_query"`, or its name."""
        origin = self.origins.get(operation.name)
        return operation.name if origin is None else f"{origin}/{operation.name}"


def _left_float(path, user_rules):
    return not settings_of(path, user_rules).get("quantize", True)


def _settings(prepared, config, user_rules):
    """Dict from operation name to its `QuantizationConfig`."""
    paths = {prepared.path(c.operation): c.operation.name for c in prepared.graph.calls}
    chosen = select(paths, rules=user_rules)
    found = {}
    for path, changes in chosen.items():
        changes = {k: v for k, v in changes.items() if k != "quantize"}
        found[paths[path]] = config.replaced(changes) if changes else config
    return found


class _Quantizer:
    """The visitor that wraps kernels and puts quantizers on activations."""

    def __init__(self, prepared, config, settings, preserve, kept):
        self.graph = prepared.graph
        self.path = prepared.path
        self.floats = prepared.floats
        self.config = config
        self.settings = settings
        self.groups = RangeGroups(
            prepared.graph,
            bits=config.activation_bits,
            floats=prepared.floats,
            identities=prepared.identities,
        )
        self.preserve = preserve
        self.kept = kept
        self.quantizers = {}
        self.layers = {}
        self.rounded_inputs = {}

    def __call__(self, call, clone, args, kwargs):
        if call.operation.name in self.floats:
            result = self._float(call.operation, clone)(*args, **kwargs)
        else:
            args, kwargs = self._round_inputs(call, args, kwargs)
            result = self._operation(call, clone)(*args, **kwargs)
        return [
            self._rounded(call, old, new)
            for old, new in zip(call.outputs, keras.tree.flatten(result), strict=True)
        ]

    def _operation(self, call, clone):
        """What computes the call in the new model."""
        operation = call.operation
        if isinstance(operation, table.NORMALIZATIONS):
            if self._joins_kernel(call):
                return lambda x, **kwargs: x
            return self._once(operation, _fused)
        if isinstance(operation, tuple(table.KERNELS)):
            following = self.graph.only_consumer(call.outputs[0])
            if following is not None and self._joins_kernel(following):
                return self._wrapped(call, following.operation)
            return self._wrapped(call)
        return self._float(operation, clone)

    def _float(self, operation, clone):
        """The copy of a layer whose weights are not rounded, but may share values."""
        if not self._known(operation):
            return clone(operation)

        def wrap(operation):
            layer = built_copy(operation)
            return TransformWeights(layer, self._other_chains(operation, layer))

        return self._once(operation, wrap)

    def _known(self, operation):
        """Names of weights of a layer that were clustered, if that is kept."""
        keeps = "clusters" in self.preserve
        return self.kept.weights(operation.name) if keeps else ()

    def _joins_kernel(self, call):
        """Whether batch normalization joins its kernel.

        It does where the scale of the product matters: one for all channels, or a power
        of two.
        """
        operation = call.operation
        normalizes = isinstance(operation, table.NORMALIZATIONS)
        if not normalizes or operation.name in self.floats:
            return False
        if not folds(self.graph, call):
            return False
        kernel = self.graph.producer(call.input_tensors[0]).operation
        settings = self.settings[kernel.name]
        if settings.weights != "max" or not settings.symmetric_weights:
            return False
        return settings.power_of_two or not settings.per_channel

    def _rounded(self, call, old, new):
        if id(old) in self.groups.sites:
            return self._quantize(old, new, self.groups.sites[id(old)])
        if is_float(old) and self.groups.rounded(call):
            return self._quantize(old, new, None)
        return new

    def _round_inputs(self, call, args, kwargs):
        """Rounds model inputs, each once, and what a join gives another scale."""
        for old in call.input_tensors:
            new = _argument(call, old, args, kwargs)
            rounded = new
            if (
                any(old is t for t in self.graph.inputs)
                and id(old) in self.groups.sites
            ):
                if id(old) not in self.rounded_inputs:
                    site = self.groups.sites[id(old)]
                    self.rounded_inputs[id(old)] = self._quantize(old, new, site)
                rounded = self.rounded_inputs[id(old)]
            site = self.groups.joined.get((id(call), id(old)))
            if site is not None:
                rounded = self._quantize(call.outputs[0], rounded, site)
            if rounded is not new:
                args, kwargs = _swap((args, kwargs), new, rounded)
        return args, kwargs

    def _quantize(self, tensor, value, site):
        group = self.groups.group(tensor)
        if group not in self.quantizers:
            fixed = self.groups.fixed_range(tensor)
            holds_input = self._holds(group, self.graph.inputs)
            self.quantizers[group] = FakeQuant(
                self.config.activation_bits,
                sites=self.groups.site_count(tensor),
                momentum=self.config.momentum,
                fixed_range=fixed,
                symmetric=self.config.symmetric_activations,
                power_of_two=self.config.power_of_two,
                ends_on_grid=holds_input,
                joins_relu=not holds_input,
                in_training=not (fixed and self._holds(group, self.graph.outputs)),
                # An input may have any name, a layer none with a space.
                name=re.sub(
                    r"[^A-Za-z0-9_.>-]", "_", f"{self.groups.name(tensor)}_quant"
                ),
            )
        return self.quantizers[group](value, site=site)

    def _holds(self, group, tensors):
        return any(self.groups.group(t) == group for t in tensors)

    def _once(self, operation, make):
        if id(operation) not in self.layers:
            self.layers[id(operation)] = make(operation)
        return self.layers[id(operation)]

    def _wrapped(self, call, normalization=None):
        def wrap(operation):
            name, axes = table.KERNELS[type(operation)]
            settings = self.settings[operation.name]
            layer = built_copy(operation)
            chain = [settings.weight_transform(axes)]
            if normalization is not None:
                layer = NormalizedKernel(layer, _fused(normalization))
                chain = [
                    FoldedFakeQuantizeWeight(
                        bits=settings.weight_bits,
                        axes=axes if settings.per_channel else (),
                        channel_axes=axes,
                        epsilon=normalization.epsilon,
                        gamma="gamma" if normalization.scale else None,
                        power_of_two=settings.power_of_two,
                    )
                ]
            weight = next(v for v in layer.weights if v.name == name).numpy()
            path = self.path(operation)
            chain = self._kept_chain(path, name, weight, axes) + chain
            others = self._other_chains(operation, layer, but=name)
            return TransformWeights(layer, {name: chain, **others})

        return self._once(call.operation, wrap)

    def _kept_chain(self, path, name, weight, axes=()):
        """What earlier passes made of a weight, as transforms."""
        chain = []
        masked = self.kept.keeps_zeros(path)
        zeros = masks.kept_zeros(weight) is not None and masked is not False
        if "zeros" in self.preserve and zeros:
            chain.append(KeepZeros())
        if "clusters" in self.preserve:
            shared = self.kept.transform(path, name, weight, axes)
            chain += [] if shared is None else [shared]
        return chain

    def _other_chains(self, operation, layer, but=None):
        """The same of weights that are not rounded: tables, biases, float layers."""
        chains = {}
        for name in self._known(operation):
            if name != but:
                weight = find_weight(layer, name).numpy()
                chains[name] = self._kept_chain(operation.name, name, weight)
        return chains


def _fused(operation):
    """A copy of batch normalization that runs as one kernel."""
    return built_copy(operation, into=FusedBatchNormalization)


def _integer_inputs(model):
    """Lets inputs that only index a table be integers: 8 bits are too few for them."""
    graph = Graph(model)
    indices = {
        tensor.name: "int32"
        for tensor in graph.inputs
        if is_float(tensor)
        and graph.consumers(tensor)
        and all(
            isinstance(c.operation, keras.layers.Embedding)
            for c in graph.consumers(tensor)
        )
    }
    if not indices:
        return model
    return rewrite(graph, unchanged, input_dtypes=indices)


def _argument(call, old, args, kwargs):
    """The new tensor that stands where `old` stood in the call."""
    flat_old = keras.tree.flatten((call.arguments.args, call.arguments.kwargs))
    flat_new = keras.tree.flatten((args, kwargs))
    return next(n for o, n in zip(flat_old, flat_new, strict=True) if o is old)


def _swap(structure, old, new):
    return keras.tree.map_structure(lambda t: new if t is old else t, structure)


def _check_rules(rules):
    """Raises unless `quantize` of a rule says yes or no, and a no stands alone."""
    check_rules(rules)
    for rule in rules:
        said = rule.settings.get("quantize", True)
        if not isinstance(said, (bool, np.bool_)):
            raise TypeError(
                "`quantize` of a rule must be True or False. Received: "
                f"{rule!r} (of type {type(said).__name__})"
            )
        if not said and len(rule.settings) > 1:
            raise ValueError(
                f"A rule with quantize=False can set nothing else. Received: {rule!r}"
            )


def _check_preserve(preserve):
    if isinstance(preserve, str) or not isinstance(preserve, Iterable):
        raise TypeError(
            "`preserve` must be a tuple: ('zeros', 'clusters'), one of them, or (). "
            f"Received: preserve={preserve!r}"
        )
    if set(preserve) - {"zeros", "clusters"}:
        raise ValueError(
            "`preserve` may hold 'zeros', 'clusters' or nothing. "
            f"Received: preserve={preserve!r}"
        )


def _check_model_is_plain(model):
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


def _unsupported(prepared, failures, bits):
    """Dict from the name of each operation that has no integer form to the reason."""
    wrong = {}
    for call in prepared.graph.calls:
        operation = call.operation
        if operation.name in prepared.floats | prepared.identities:
            continue
        if isinstance(operation, table.NORMALIZATIONS):
            if not over_last_axis(call):
                wrong[operation.name] = (
                    f"{_describe(operation)}: normalizes axis {operation.axis}; TFLite "
                    "has channels last"
                )
        elif _reads_mask(call):
            wrong[operation.name] = (
                f"{_describe(operation)}: reads a mask (of an Embedding with mask_zero "
                "or a Masking layer), which no integer form passes on; pad with zeros "
                "and leave the mask out, or pass it to attention as `attention_mask`"
            )
        elif bits > 8 and _only_8_bits(call):
            wrong[operation.name] = (
                f"{_describe(operation)}: the TFLite converter has no form of it with "
                "activations of 16 bits; config='int8' has one"
            )
        elif not table.known(operation):
            reason = failures.get(operation.name)
            wrong[operation.name] = _describe(operation) + (
                f": {reason}" if reason else ""
            )
    return wrong


def _only_8_bits(call):
    return table.only_8_bits(call.operation) and any(map(is_float, call.input_tensors))


def _reads_mask(call):
    """Whether Keras hands the layer a mask that an earlier layer made."""
    takes = getattr(call.operation, "_call_has_mask_arg", False) or isinstance(
        call.operation, keras.layers.RNN
    )
    return takes and has_mask(*call.input_tensors)


def _check_none(wrong, allowed, model):
    left = [reason for name, reason in wrong.items() if name not in allowed]
    if left:
        raise ValueError(
            f"Cannot quantize {len(left)} layer(s) of model {model.name!r}:\n  "
            + "\n  ".join(left)
            + "\nTo leave them float, pass allow_float=[<patterns of their names>]; "
            "the file then holds float operations there."
        )


def _describe(operation):
    name = table.activation(operation)
    kind = f"activation {name!r}" if name else type(operation).__name__
    return f"{operation.name!r} ({kind})"
