"""Builds the Keras 3 model that a Keras 2 description tells of.

Example:
    ```python
    model = build(read_h5("model.h5")).model
    ```
"""

import dataclasses
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import layers

from tfcompress.legacy import functions
from tfcompress.legacy.layers import (
    UnsupportedLegacyLayer,
    dtype_name,
    hard_sigmoid_keras2,
    make_layer,
    safe_name,
)
from tfcompress.legacy.read import LegacyLayer, from_config, holds_wrappers, is_model
from tfcompress.legacy.wrappers import (
    Quantization,
    inner_name,
    parted,
    short,
    unwrapped,
)

_CONSTANT = "_CONSTANT_VALUE"
_RECURRENT = (
    layers.RNN,
    layers.Bidirectional,
    layers.ConvLSTM1D,
    layers.ConvLSTM2D,
    layers.ConvLSTM3D,
)


@dataclass
class Built:
    """A Keras 3 model, and what TFMOT's wrappers said.

    Attributes:
        model: `keras.Model`.
        quantizations: Dict from the name of a layer, or of the input whose values
            were rounded, to its `Quantization`.
        plain: Names of the layers without a wrapper of TFMOT's.
    """

    model: keras.Model
    quantizations: dict = field(default_factory=dict)
    plain: list = field(default_factory=list)


def build(description, custom_objects=None):
    """Builds a model with its weights.

    Args:
        description: `LegacyModel`.
        custom_objects: Dict from class names to Keras 3 classes.

    Returns:
        A `Built`.

    Raises:
        ValueError: If something has no counterpart in Keras 3; names all of that.
    """
    builder = _Builder(description, custom_objects or {})
    model = builder.model()
    builder.assign()
    return Built(model, builder.quantizations, builder.plain)


class _Builder:
    def __init__(self, description, custom_objects):
        self.description = description
        self.custom = custom_objects
        self.layers = {}
        self.tensors = {}
        self.inputs = {}
        self.quantizations = {}
        self.plain = []
        self.failures = []
        entries = description.layers
        self.names = {entry.name for entry in entries} | set(map(inner_name, entries))

    def model(self):
        """The model; all layers are made before the first is called."""
        for entry in self.description.layers:
            self._make(entry)
        self._check()
        if self.description.kind == "Sequential":
            inputs, outputs = self._chain()
        else:
            self._calls()
            inputs = self._structure(self.description.inputs)
            outputs = self._structure(self.description.outputs)
        return keras.Model(inputs, outputs, name=safe_name(self.description.name))

    def _check(self):
        if self.failures:
            listed = "\n".join(f"- {failure}" for failure in self.failures)
            raise ValueError(
                f"Model {self.description.name!r} cannot be turned into a Keras 3 "
                f"model:\n{listed}"
            )

    def assign(self):
        """Gives every layer its weights; a nested model takes those of all inside."""
        for made in self.layers.values():
            if isinstance(made, _Layer):
                made.assign()

    def _make(self, entry):
        try:
            if entry.class_name == "InputLayer":
                self.inputs[entry.name] = _input(entry, self._name(entry.name))
            elif entry.class_name in functions.CLASSES:
                self.layers[entry.name] = _Function(entry)
            elif is_model(entry.class_name):
                self.layers[entry.name] = self._nested(entry)
            elif entry.class_name == "QuantizeLayer":
                self.layers[entry.name] = _Identity(entry)
            else:
                self.layers[entry.name] = self._layer(entry)
        except UnsupportedLegacyLayer as err:
            self.failures.append(str(err))

    def _layer(self, entry):
        inner, quantization = unwrapped(entry)
        config = {**inner.config, "name": self._name(inner.name)}
        for key in ("layer", "forward_layer", "backward_layer"):
            value = config.get(key)
            if isinstance(value, dict) and is_model(value["class_name"]):
                config[key] = self._held_model(value)
        layer = make_layer(inner.class_name, config, self.custom)
        if quantization is not None:
            self.quantizations[layer.name] = quantization
        elif inner is entry:
            self.plain.append(layer.name)
        return _Layer(layer, inner)

    def _name(self, name):
        """A name without `/`, which Keras 3 does not take, that no other layer has."""
        safe = safe_name(name)
        while safe != name and safe in self.names:
            safe += "_"
        self.names.add(safe)
        return safe

    def _held_model(self, value):
        """The model that a layer such as `TimeDistributed` calls."""
        entry = LegacyLayer(
            value["config"]["name"], value["class_name"], value["config"]
        )
        return self._nested(entry).layer

    def _nested(self, entry):
        kind = "Sequential" if entry.class_name == "Sequential" else "Functional"
        # The weights of a nested model lie in one row, but for wrappers in it.
        wrapped = holds_wrappers(entry.config)
        inner = entry.model if wrapped else None
        if inner is None:
            weights = parted(entry) if wrapped else {}
            inner = from_config(kind, entry.config, weights)
        inner = dataclasses.replace(inner, name=self._name(entry.name))
        builder = _Builder(inner, self.custom)
        try:
            model = builder.model()
        except ValueError as err:
            raise UnsupportedLegacyLayer(str(err)) from err
        if builder.quantizations:
            raise UnsupportedLegacyLayer(
                f"the nested model {entry.name!r} has quantized layers. Quantize the "
                "float model with tfc.quantize_aware instead"
            )
        if not entry.config.get("trainable", True):
            model.trainable = False
        return _Layer(model, entry, parts=builder if wrapped else None)

    def _chain(self):
        first, *rest = self.description.layers
        inputs = tensor = self.inputs[first.name]
        for entry in rest:
            if entry.class_name != "InputLayer":
                tensor = self._call(entry, [tensor], {})
                self._check()
        return inputs, tensor

    def _calls(self):
        """Calls every layer as often as it was, when what it reads is there."""
        for name, tensor in self.inputs.items():
            self.tensors[name, 0] = [tensor]
        first = self._first_calls()
        waiting = [
            (entry, first[entry.name] + number, node)
            for entry in self.description.layers
            for number, node in enumerate(entry.inbound)
        ]
        while waiting:
            left = []
            for entry, number, node in waiting:
                if not all(key in self.tensors for key in self._read(node)):
                    left.append((entry, number, node))
                    continue
                args, kwargs = self._arguments(node)
                result = self._call(entry, args, kwargs)
                if result is None:
                    continue
                self.tensors[entry.name, number] = keras.tree.flatten(result)
            if len(left) == len(waiting):
                # What reads a call that failed waits for ever.
                self._check()
                names = sorted({entry.name for entry, _, _ in left})
                raise ValueError(
                    f"The graph of model {self.description.name!r} is damaged: layers "
                    f"{names[:5]} read tensors that nothing computes."
                )
            waiting = left
        self._check()

    def _first_calls(self):
        """Dict from names to the number of a layer's first call.

        Of some nested models it is 1, as they have a call of their own; which ones
        changed with the version. The last call is one that something reads.
        """
        entries = self.description.layers
        read = self._read([entry.inbound for entry in entries])
        read += self._read([self.description.outputs])
        last = {}
        for name, number in read:
            last[name] = max(number, last.get(name, 0))
        calls = {entry.name: len(entry.inbound) for entry in entries}
        return {n: max(last.get(n, 0) - calls[n] + 1, 0) for n in calls}

    def _call(self, entry, args, kwargs):
        """The result, or `None` if there is no counterpart for the call."""
        try:
            result = self.layers[entry.name](self, args, kwargs)
        except UnsupportedLegacyLayer as err:
            self.failures.append(f"layer {entry.name!r}: {err}")
            return None
        self._name_operations(result, {id(t) for t in keras.tree.flatten(args)})
        return result

    def _name_operations(self, result, known):
        """Gives operations, whose names Keras chose, names that no layer has."""
        waiting = [t for t in keras.tree.flatten(result) if id(t) not in known]
        while waiting:
            tensor = waiting.pop()
            operation = getattr(tensor, "_keras_history", (None,))[0]
            if operation is None or isinstance(operation, keras.layers.Layer):
                continue
            while operation.name in self.names:
                operation.name += "_"
            node = operation._inbound_nodes[-1]
            waiting += [t for t in node.input_tensors if id(t) not in known]

    def _read(self, node):
        """The keys of the tensors that a node reads."""
        found = []

        def visit(value):
            if _is_reference(value) and value[0] != _CONSTANT:
                if self._known(value[0]):
                    found.append((value[0], value[1]))
                for extra in value[3:]:
                    visit(extra)
            elif isinstance(value, (list, tuple)):
                for part in value:
                    visit(part)
            elif isinstance(value, dict):
                for part in value.values():
                    visit(part)

        visit(node)
        return found

    def _known(self, name):
        return name in self.layers or name in self.inputs

    def _arguments(self, node):
        """The first argument and the named ones of a call."""
        kwargs = {}

        def first(value):
            if _is_reference(value):
                for extra in value[3:]:
                    kwargs.update(extra)
                return value[2] if value[0] == _CONSTANT else self._tensor(value)
            if isinstance(value, dict):
                return {k: first(v) for k, v in value.items()}
            return [first(part) for part in value]

        argument = first(node)
        if isinstance(argument, list) and len(argument) == 1:
            argument = argument[0]
        named = {k: self._named(v) for k, v in kwargs.items()}
        return [argument], {k: v for k, v in named.items() if v is not None}

    def _named(self, value):
        if _is_reference(value) and len(value) == 3 and self._known(value[0]):
            return self._tensor(value)
        if isinstance(value, dict):
            return {k: self._named(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._named(part) for part in value]
        return value

    def _tensor(self, reference):
        return self.tensors[reference[0], reference[1]][reference[2]]

    def _structure(self, value):
        """The tensors of `[layer, node, tensor]`s, a single one by itself."""
        if _is_reference(value):
            return self._tensor(value)
        if isinstance(value, dict):
            return {k: self._structure(v) for k, v in value.items()}
        found = [self._structure(part) for part in value]
        return found[0] if len(found) == 1 else found


class _Layer:
    """A Keras 3 layer with the weights it shall have."""

    def __init__(self, layer, entry, parts=None):
        self.layer = layer
        self.entry = entry
        self.parts = parts
        self.after = None
        # Keras 3 has a function of this name that is another one.
        if getattr(layer, "activation", None) is hard_sigmoid_keras2:
            if not isinstance(layer, layers.RNN):
                layer.activation = keras.activations.linear
                self.after = hard_sigmoid_keras2

    def __call__(self, builder, args, kwargs):
        if isinstance(self.layer, _RECURRENT) and isinstance(args[0], list):
            # Keras 2 puts the states among the inputs of the graph.
            args, kwargs = self._with_states(args[0], kwargs)
        result = self.layer(*args, **kwargs)
        return result if self.after is None else self.after(result)

    def _with_states(self, tensors, kwargs):
        if self.entry.config.get("num_constants"):
            raise UnsupportedLegacyLayer(
                "Keras 3 has no `constants` of recurrent layers. Rebuild that part "
                "of the model with the constants among the inputs of each step"
            )
        sequence, *states = tensors
        one = len(states) == 1
        return [sequence], {**kwargs, "initial_state": states[0] if one else states}

    def assign(self):
        if self.parts is not None:
            self.parts.assign()
        elif isinstance(self.layer, layers.Discretization):
            self._set_bins()
        else:
            self._assign()
        for layer in self.layer._flatten_layers():
            # Normalization computes with what it derives from its weights.
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()

    def _set_bins(self):
        """Keras 3 has the data's summary, from which bins come, in no weight."""
        for _, array in self.entry.weights:
            self.layer.summary = array

    def _assign(self):
        variables = self.layer.weights
        ordered = [v for v in variables if v.trainable]
        ordered += [v for v in variables if not v.trainable]
        arrays = self._arrays([variable.name for variable in ordered])
        wanted = [tuple(v.shape) for v in ordered]
        found = [tuple(a.shape) for a in arrays]
        if wanted != found:
            raise ValueError(
                f"The weights of layer {self.entry.name!r} ({self.entry.class_name}) "
                f"do not fit its Keras 3 form: expected shapes {wanted}. Received: "
                f"{found}."
            )
        for variable, array in zip(ordered, arrays, strict=True):
            variable.assign(array)

    def _arrays(self, names):
        """The arrays by name where that tells them apart, else in their order."""
        found = {short(name): array for name, array in self.entry.weights}
        if set(found) == set(names) and len(found) == len(self.entry.weights):
            return [found[name] for name in names]
        return [array for _, array in self.entry.weights]


class _Function:
    """A TensorFlow function."""

    def __init__(self, entry):
        default = "__operators__.getitem"
        self.name = entry.config.get("function", default)
        functions.check_function(self.name)

    def __call__(self, builder, args, kwargs):
        return functions.call_function(self.name, tuple(args), kwargs)


class _Identity:
    """TFMOT's layer that rounds an input: here only remembered."""

    def __init__(self, entry):
        self.quantization = Quantization.of_input(entry)

    def __call__(self, builder, args, kwargs):
        (tensor,) = args
        builder.quantizations[tensor._keras_history.operation.name] = self.quantization
        return tensor


def _input(entry, name):
    config = entry.config
    shape = config.get("batch_input_shape") or config.get("batch_shape")
    if config.get("ragged") or config.get("sparse"):
        raise UnsupportedLegacyLayer(
            f"input {entry.name!r} is ragged or sparse. Build the model on dense inputs"
        )
    return keras.Input(
        batch_shape=tuple(shape),
        dtype=dtype_name(config.get("dtype", "float32")),
        name=name,
    )


def _is_reference(value):
    return (
        isinstance(value, (list, tuple))
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and isinstance(value[1], (int, np.integer))
        and not isinstance(value[1], bool)
    )
