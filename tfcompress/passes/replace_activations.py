"""Replaces activations that are dear on a device by ones that are cheap there.

Example:
    ```python
    cheaper = tfc.replace_activations(model)   # silu -> hard_silu, gelu -> relu6
    other = tfc.replace_activations(model, {"tanh": "hard_tanh"})
    ```
"""

import re
from collections import Counter

from keras import activations, layers

from tfcompress.graph import built_copy, clone, rewrite
from tfcompress.passes import surgery
from tfcompress.passes.folded_layers import LINEAR
from tfcompress.passes.surgery import Change
from tfcompress.selection import select

DEFAULT = {"silu": "hard_silu", "gelu": "relu6"}

_ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}
# Keras operations, by class name, that are activations.
_OPERATIONS = {
    "Celu",
    "Elu",
    "Gelu",
    "Glu",
    "HardShrink",
    "HardSigmoid",
    "HardSilu",
    "HardTanh",
    "LeakyRelu",
    "LogSigmoid",
    "LogSoftmax",
    "Relu",
    "Relu6",
    "Selu",
    "Sigmoid",
    "Silu",
    "SoftShrink",
    "Softmax",
    "Softplus",
    "Softsign",
    "SparsePlus",
    "SparseSigmoid",
    "Sparsemax",
    "Squareplus",
    "Tanh",
    "TanhShrink",
    "Threshold",
}
_LAYERS = {
    layers.ELU: "elu",
    layers.LeakyReLU: "leaky_relu",
    layers.PReLU: "prelu",
    layers.Softmax: "softmax",
}
_ARGUMENTS = ("activation", "recurrent_activation")


def replace_activations(
    model, mapping=None, *, include=None, exclude=None, return_report=False
):
    """Returns a model with other activations; weights stay as they are.

    Found are `Activation` layers, layers such as `ReLU` and `LeakyReLU`, the
    `activation` and `recurrent_activation` of any layer (within `Bidirectional` and
    `TimeDistributed` too), and operations of `keras.ops`. Train on afterwards: the
    model computes something else.

    Args:
        model: Built `keras.Model`. It is not changed; nested
            models are inlined.
        mapping: Dict from the name of an activation (`"silu"`; of a layer such as
            `LeakyReLU` `"leaky_relu"`; of `ReLU(6.0)` `"relu6"`) to its replacement: a
            name that Keras knows, a function, or a layer, of which each place gets a
            copy. `None` is `{"silu": "hard_silu", "gelu": "relu6"}`. Functions of your
            own must be registered with Keras for the model to load.
        include: Pattern or patterns of layer names; others are left alone.
        exclude: Pattern or patterns of layer names to leave alone.
        return_report: Whether to return the report as well.

    Returns:
        A new `keras.Model`; with `return_report` a pair of it and a `SurgeryReport`.

    Raises:
        TypeError: If `model` is no Keras 3 model, or `mapping` or a replacement is of
            a wrong type.
        ValueError: If the model cannot be rewritten, a name is unknown, no activation
            in the model has one of the names, or a layer is to stand inside a
            recurrent one.

    Reference:
        Howard et al., "Searching for MobileNetV3", 2019, section 5.2, for hard-swish.
        arXiv:1905.02244
    """
    graph = surgery.opened(model, verb="replace_activations")
    found = {}
    for call in graph.calls:
        names = set(_activations(call.operation)) - {"linear"}
        if names:
            found[call.operation.name] = names
    mapping = _checked(DEFAULT if mapping is None else mapping, found, graph)
    chosen = select(found, include=include, exclude=exclude)
    if not any(found[name] & set(mapping) for name in chosen):
        there = Counter(a for names in found.values() for a in sorted(names))
        listed = ", ".join(f"{name} ({n})" for name, n in sorted(there.items()))
        raise ValueError(
            f"`mapping` replaces {', '.join(sorted(mapping))}, and no chosen layer of "
            f"{model.name!r} has such an activation. There are: {listed or 'none'}. "
            "Name one of these in `mapping`."
        )
    visitor = _Replacer(mapping, chosen)
    replaced = rewrite(graph, visitor)
    return surgery.closed(
        "replace_activations", graph, replaced, visitor.changes(), return_report
    )


class _Replacer:
    """Visitor that puts each new activation in the place of an old."""

    def __init__(self, mapping, chosen):
        self.mapping = mapping
        self.chosen = chosen
        self.made = {}
        self._replaced = []

    def __call__(self, call, clone, args, kwargs):
        operation = call.operation
        names = [n for n in _activations(operation) if n in self.mapping]
        if operation.name not in self.chosen or not names:
            return clone(operation)(*args, **kwargs)
        if id(operation) not in self.made:
            self.made[id(operation)] = self._made(operation, names)
        made = self.made[id(operation)]
        if _stands_alone(operation):
            return made[0](surgery.first_tensor(args, kwargs))
        outputs = made[0](*args, **kwargs)
        return made[1](outputs) if len(made) > 1 else outputs

    def _made(self, operation, names):
        """The layers that take the place of an operation, one or two."""
        if _stands_alone(operation):
            made = [_as_layer(self.mapping[names[0]], operation.name)]
        else:
            made = self._kernel_and_activation(operation, names)
        what = ", ".join(f"{n} -> {_text(self.mapping[n])}" for n in names)
        self._replaced.append((operation, what, made))
        return made

    def changes(self):
        """Yields a `Change` for each operation that was replaced."""
        for operation, what, made in self._replaced:
            before = operation.count_params() if _is_layer(operation) else 0
            after = sum(layer.count_params() for layer in made)
            yield Change(operation.name, what, before, after)

    def _kernel_and_activation(self, layer, names):
        own = _name_of(getattr(layer, "activation", None))
        value = self.mapping.get(own)
        if isinstance(value, layers.Layer) and type(layer) in LINEAR:
            split = [built_copy(layer, activation="linear")]
            return [*split, _as_layer(value, f"{layer.name}_activation")]
        if any(isinstance(self.mapping[name], layers.Layer) for name in names):
            raise ValueError(
                f"A layer cannot stand inside layer {layer.name!r} "
                f"({type(layer).__name__}). Give a name or a function for "
                f"{', '.join(names)}, or exclude {layer.name!r}."
            )
        config = layer.get_config()
        changed = _config_with(config, self.mapping)
        changes = {k: v for k, v in changed.items() if v is not config[k]}
        return [built_copy(layer, **changes)]


def _is_layer(operation):
    return isinstance(operation, layers.Layer)


def _stands_alone(operation):
    """Whether an operation is nothing but an activation."""
    alone = (layers.Activation, layers.ReLU, *_LAYERS)
    return not _is_layer(operation) or type(operation) in alone


def _activations(operation):
    """Names of the activations of an operation, in order, each once."""
    if not _is_layer(operation):
        kind = type(operation).__name__
        return [_snake(kind)] if kind in _OPERATIONS else []
    if type(operation) is layers.ReLU:
        return [_relu_name(operation)]
    if type(operation) in _LAYERS:
        return [_LAYERS[type(operation)]]
    return list(dict.fromkeys(_config_names(operation.get_config())))


def _relu_name(layer):
    most = None if layer.max_value is None else float(layer.max_value)
    slope, threshold = float(layer.negative_slope), float(layer.threshold)
    if slope == threshold == 0 and most in (None, 6.0):
        return "relu" if most is None else "relu6"
    if most is None and threshold == 0:
        return "leaky_relu"
    return f"relu(max_value={most}, negative_slope={slope}, threshold={threshold})"


def _name_of(value):
    """Name of an activation: of its name, function, layer, or serialized form."""
    if isinstance(value, dict):
        name = value.get("config")
        named = isinstance(name, str)
        value = name.split(">")[-1] if named else _snake(value["class_name"])
    elif isinstance(value, layers.Layer):
        value = _snake(type(value).__name__)
    elif callable(value):
        value = getattr(value, "__name__", "custom")
    return _ALIASES.get(value, value)


def _config_names(config):
    """Names of all activations in a layer's config, layers within it included."""
    for key, value in config.items():
        if key in _ARGUMENTS and value is not None:
            yield _name_of(value)
        elif _holds_layer(value):
            yield from _config_names(value["config"])


def _config_with(config, mapping):
    """The config with other activations; entries that stay are the same objects."""
    changed = {}
    for key, value in config.items():
        if key in _ARGUMENTS and _name_of(value) in mapping:
            value = activations.get(mapping[_name_of(value)])
        elif _holds_layer(value):
            inner = _config_with(value["config"], mapping)
            if any(inner[k] is not v for k, v in value["config"].items()):
                value = {**value, "config": inner}
        changed[key] = value
    return changed


def _holds_layer(value):
    return isinstance(value, dict) and isinstance(value.get("config"), dict)


def _as_layer(value, name):
    if isinstance(value, layers.Layer):
        return clone(value, name=name)
    return layers.Activation(value, name=name)


def _snake(name):
    name = {"LeakyReLU": "LeakyRelu", "PReLU": "Prelu", "ReLU": "Relu"}.get(name, name)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _text(value):
    return (
        type(value).__name__ if isinstance(value, layers.Layer) else (_name_of(value))
    )


def _checked(mapping, found, graph):
    """The mapping by Keras' own names."""
    if not isinstance(mapping, dict) or not mapping:
        raise TypeError(
            "`mapping` must be a dict from names of activations to replacements, for "
            f'example {{"silu": "hard_silu"}}. Received: mapping={mapping!r}'
        )
    there = set().union(*found.values()) if found else set()
    checked = {}
    for key, value in mapping.items():
        name = _ALIASES.get(key, key)
        known = isinstance(key, str) and (name in _LAYERS.values() or _is_known(name))
        if name not in there and not known:
            raise ValueError(
                "`mapping` must be keyed by names of activations. Received: "
                f"{key!r}. Model {graph.model.name!r} has: {', '.join(sorted(there))}"
            )
        checked[name] = _checked_value(value)
    return checked


def _checked_value(value):
    kind = isinstance(value, type)
    if kind or not (isinstance(value, str) or callable(value)):
        raise TypeError(
            "A replacement must be the name of an activation, a function or a layer "
            f"object. Received: {value!r}" + (" (a class: call it)" if kind else "")
        )
    if isinstance(value, str):
        if not _is_known(value):
            raise ValueError(
                "A replacement must be a name that keras.activations knows, such as "
                f"'relu6' or 'hard_silu'. Received: {value!r}"
            )
    return value


def _is_known(name):
    try:
        return callable(activations.get(name))
    except ValueError:
        return False
