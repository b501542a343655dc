"""Builds the Keras 3 model that a Keras 2 description tells of.

Example:
    ```python
    model = build(read_h5("model.h5")).model
    ```
"""

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
)
from tfcompress.legacy.read import MODELS, from_config
from tfcompress.legacy.wrappers import Quantization, short, unwrapped

_CONSTANT = "_CONSTANT_VALUE"


@dataclass
class Built:
    """A Keras 3 model, and what TFMOT's wrappers said.

    Attributes:
        model: `keras.Model`.
        quantizations: Dict from the name of a layer, or of the input whose values
            were rounded, to its `Quantization`.
    """

    model: keras.Model
    quantizations: dict = field(default_factory=dict)


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
    return Built(model, builder.quantizations)


class _Builder:
    def __init__(self, description, custom_objects):
        self.description = description
        self.custom = custom_objects
        self.layers = {}
        self.tensors = {}
        self.inputs = {}
        self.quantizations = {}
        self.failures = []

    def model(self):
        """The model; all layers are made before the first is called."""
        for entry in self.description.layers:
            self._make(entry)
        if self.failures:
            listed = "\n".join(f"- {failure}" for failure in self.failures)
            raise ValueError(
                f"Model {self.description.name!r} cannot be turned into a Keras 3 "
                f"model:\n{listed}"
            )
        if self.description.kind == "Sequential":
            inputs, outputs = self._chain()
        else:
            self._calls()
            inputs = self._structure(self.description.inputs)
            outputs = self._structure(self.description.outputs)
        return keras.Model(inputs, outputs, name=self.description.name)

    def assign(self):
        """Gives every layer its weights; a nested model takes those of all inside."""
        for made in self.layers.values():
            if isinstance(made, _Layer):
                made.assign()

    def _make(self, entry):
        try:
            if entry.class_name == "InputLayer":
                self.inputs[entry.name] = _input(entry)
            elif entry.class_name in functions.CLASSES:
                self.layers[entry.name] = _Function(entry)
            elif entry.class_name in (*MODELS, "Sequential"):
                self.layers[entry.name] = self._nested(entry)
            elif entry.class_name == "QuantizeLayer":
                self.layers[entry.name] = _Identity(entry)
            else:
                inner, quantization = unwrapped(entry)
                layer = make_layer(inner.class_name, inner.config, self.custom)
                self.layers[entry.name] = _Layer(layer, inner)
                if quantization is not None:
                    self.quantizations[layer.name] = quantization
        except UnsupportedLegacyLayer as err:
            self.failures.append(str(err))

    def _nested(self, entry):
        kind = "Sequential" if entry.class_name == "Sequential" else "Functional"
        inner = from_config(kind, entry.config, {})
        builder = _Builder(inner, self.custom)
        model = builder.model()
        model.trainable = entry.config.get("trainable", True)
        first = entry.config["layers"][0]["class_name"]
        # A model with inputs of its own has a call of its own, which counts as first.
        begin = 1 if kind == "Functional" or first == "InputLayer" else 0
        return _Layer(model, entry, begin=begin)

    def _chain(self):
        first, *rest = self.description.layers
        inputs = tensor = self.inputs[first.name]
        for entry in rest:
            if entry.class_name != "InputLayer":
                tensor = self._call(entry, [tensor], {})
        return inputs, tensor

    def _calls(self):
        """Calls every layer as often as it was, when what it reads is there."""
        for name, tensor in self.inputs.items():
            self.tensors[name, 0] = [tensor]
        waiting = [
            (entry, number, node)
            for entry in self.description.layers
            for number, node in enumerate(entry.inbound)
        ]
        while waiting:
            left = []
            for entry, number, node in waiting:
                begin = self.layers[entry.name].begin
                if not all(key in self.tensors for key in self._read(node)):
                    left.append((entry, number, node))
                    continue
                args, kwargs = self._arguments(node)
                result = self._call(entry, args, kwargs)
                self.tensors[entry.name, begin + number] = keras.tree.flatten(result)
            if len(left) == len(waiting):
                names = sorted({entry.name for entry, _, _ in left})
                raise ValueError(
                    f"The graph of model {self.description.name!r} is damaged: layers "
                    f"{names[:5]} read tensors that nothing computes."
                )
            waiting = left

    def _call(self, entry, args, kwargs):
        made = self.layers[entry.name]
        try:
            return made(self, args, kwargs)
        except UnsupportedLegacyLayer as err:
            raise ValueError(f"Layer {entry.name!r}: {err}.") from err

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

    def __init__(self, layer, entry, begin=0):
        self.layer = layer
        self.entry = entry
        self.begin = begin
        self.after = None
        # Keras 3 has a function of this name that is another one.
        if getattr(layer, "activation", None) is hard_sigmoid_keras2:
            if not isinstance(layer, layers.RNN):
                layer.activation = keras.activations.linear
                self.after = hard_sigmoid_keras2

    def __call__(self, builder, args, kwargs):
        result = self.layer(*args, **kwargs)
        return result if self.after is None else self.after(result)

    def assign(self):
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

    begin = 0

    def __init__(self, entry):
        default = "__operators__.getitem"
        self.name = entry.config.get("function", default)

    def __call__(self, builder, args, kwargs):
        return functions.call_function(self.name, tuple(args), kwargs)


class _Identity:
    """TFMOT's layer that rounds an input: here only remembered."""

    begin = 0

    def __init__(self, entry):
        self.quantization = Quantization.of_input(entry)

    def __call__(self, builder, args, kwargs):
        (tensor,) = args
        builder.quantizations[tensor._keras_history.operation.name] = self.quantization
        return tensor


def _input(entry):
    config = entry.config
    shape = config.get("batch_input_shape") or config.get("batch_shape")
    if config.get("ragged") or config.get("sparse"):
        raise UnsupportedLegacyLayer(
            f"input {entry.name!r} is ragged or sparse. Build the model on dense inputs"
        )
    return keras.Input(
        batch_shape=tuple(shape),
        dtype=dtype_name(config.get("dtype", "float32")),
        name=entry.name,
    )


def _is_reference(value):
    return (
        isinstance(value, (list, tuple))
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and isinstance(value[1], (int, np.integer))
        and not isinstance(value[1], bool)
    )
