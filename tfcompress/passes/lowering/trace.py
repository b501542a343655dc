"""The operations of which a custom layer or subclassed model consists.

Its `call` runs on symbolic tensors, and what it does to them is recorded by Keras.

Example:
    ```python
    form = traced(layer)            # for `lower`
    functional = functional_form(subclassed_model)
    ```
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfcompress.graph import (
    Graph,
    allow_depth,
    built_copy,
    calls_between,
    flatten,
    functional,
    is_of,
    rewrite,
    unused_name,
)
from tfcompress.layers import ConstantTensor
from tfcompress.passes.lowering import parts


class NotTraceableError(ValueError):
    """A `call` does what cannot be recorded."""


def traced(layer):
    """A form of a layer whose `call` consists of Keras layers and operations.

    Args:
        layer: Built layer of any class.

    Returns:
        A function that is called like the layer.

    Raises:
        NotTraceableError: From the function, if the recording fails: the call uses
            TensorFlow directly, or computes with a weight alone, which would no longer
            be trained.
    """
    copied = built_copy(layer)
    parameters = {}

    def form(*args, **kwargs):
        anchor = next(t for t in keras.tree.flatten((args, kwargs)) if _symbolic(t))
        try:
            with _recording(anchor):
                outputs = copied.call(*args, **kwargs)
        except Exception as err:
            raise NotTraceableError(_reason(layer, err)) from err
        outputs = _with_parameters(layer, outputs, args, kwargs, anchor, parameters)
        _check_complete(layer, copied, outputs, parameters)
        return outputs

    return form


def functional_form(model):
    """A functional model that computes what a subclassed one does.

    Args:
        model: Built subclassed `keras.Model` with a `get_config`, which has been called
            on data or has had its inputs declared.

    Returns:
        A functional `keras.Model` with copies of its weights.

    Raises:
        NotTraceableError: If its `call` cannot be recorded.
        ValueError: If it cannot be copied, or its input shapes are not known.
    """
    inputs = _symbolic_inputs(model)
    packed = inputs[0] if len(inputs) == 1 else inputs
    if isinstance(inputs, dict):
        packed = inputs
    outputs = traced(model)(packed)
    allow_depth()
    return keras.Model(packed, outputs, name=model.name)


def flat_form(model, *, open_layers=False):
    """A functional model without models inside, whatever kinds of models there are.

    Args:
        model: Built `keras.Model`; subclassed ones in it are recorded.
        open_layers: Whether to record layers of a user's own class too, if they consist
            of layers, have no weights beside those and are the `same_in_training`. What
            cannot be recorded stays as it is.

    Returns:
        A functional `keras.Model`: `model` itself if it is flat already. Layers from
        within are named `<outer>_<layer>`.

    Raises:
        NotTraceableError: If the `call` of a subclassed model cannot be recorded.
        ValueError: If one cannot be copied, or its input shapes are not known.
    """
    model = model if functional(model) else functional_form(model)
    closed = set()
    while True:
        graph = Graph(flatten(model, keep_subclassed=True))
        found = {c.operation.name: c.operation for c in graph.calls}
        names = set(found)
        for name, operation in list(found.items()):
            if _is_model(operation):
                continue
            opens = open_layers and name not in closed and _opens_layer(operation)
            calls = [c for c in graph.calls if opens and c.operation is operation]
            if not (opens and all(map(same_in_training, calls))):
                closed.add(name)
                del found[name]
        if not found:
            return graph.model
        forms = {name: traced(operation) for name, operation in found.items()}
        model = rewrite(graph, _TakeApart(forms, names))


def same_in_training(call):
    """Whether a layer calls the same while training as it does at inference.

    It does not if it drops or adds noise by operations of its own, adds losses, or
    draws random values, which a recording would make constants.

    Args:
        call: A call of a layer that can be recorded; one that cannot is not the same.
    """
    operation = call.operation
    if operation.activity_regularizer is not None:
        return False
    args, kwargs = keras.tree.map_structure(
        lambda v: keras.KerasTensor(v.shape, v.dtype) if _symbolic(v) else v,
        (call.arguments.args, call.arguments.kwargs),
    )
    kwargs = {k: v for k, v in kwargs.items() if v is not None}
    recorded = []
    try:
        form = traced(operation)
        for training in (True, False):
            if getattr(operation, "_call_has_training_arg", False):
                kwargs["training"] = training
            recorded.append(_written((args, kwargs), form(*args, **kwargs)))
    except (TypeError, ValueError):
        return False
    return recorded[0] == recorded[1]


def _written(inputs, outputs):
    """What was recorded, as a list that can be compared."""
    numbers, calls = {}, []

    def write(value):
        if _symbolic(value):
            return numbers.setdefault(id(value), len(numbers))
        if isinstance(value, (np.ndarray, tf.Tensor)):
            value = np.asarray(value)
            return str(value.dtype), value.shape, value.tobytes()
        # `training` is handed on to the layers within.
        return None if isinstance(value, bool) else repr(value)

    keras.tree.map_structure(write, inputs)
    for node in calls_between(inputs, outputs):
        operation = node.operation
        is_layer = isinstance(operation, keras.layers.Layer)
        given = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        calls.append(
            [
                id(operation) if is_layer else type(operation).__name__,
                *map(write, given),
                *map(write, node.outputs),
            ]
        )
    return calls, [write(v) for v in keras.tree.flatten(outputs)]


def _is_model(operation):
    return isinstance(operation, keras.Model)


def _opens_layer(operation):
    """Whether a layer is of a user's own class and consists of layers with weights."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    if is_of("tfcompress", type(operation)):
        return False
    of_keras = (cls for cls in type(operation).__mro__ if is_of("keras", cls))
    # Derived from another class, it is one of those.
    if next(of_keras) is not keras.layers.Layer:
        return False
    within = operation._flatten_layers(include_self=False)
    in_layers = {id(v) for layer in within for v in layer.variables}
    own = {id(v) for v in operation.variables} - in_layers
    return bool(in_layers) and not own


class _TakeApart:
    """The visitor that calls forms in place of what holds layers."""

    def __init__(self, forms, names):
        self.forms = forms
        self.names = names
        self.named = set()

    def __call__(self, call, clone, args, kwargs):
        form = self.forms.get(call.operation.name)
        if form is None:
            return clone(call.operation)(*args, **kwargs)
        outputs = form(*args, **{k: v for k, v in kwargs.items() if v is not None})
        for part in calls_between((args, kwargs), outputs):
            self._name(part.operation, call.operation.name)
        return outputs

    def _name(self, part, outer):
        if id(part) in self.named:
            return
        self.named.add(id(part))
        part.name = unused_name(f"{outer}_{part.name}", self.names)
        self.names.add(part.name)


def _symbolic_inputs(model):
    if getattr(model, "inputs", None):
        return [
            keras.Input(batch_shape=t.shape, dtype=_input_dtype(t), name=t.name)
            for t in model.inputs
        ]
    config = model.get_build_config() or {}
    shape = config.get("input_shape")
    if shape is None:
        raise NotTraceableError(
            f"The input shape of {model.name!r} is not known. Call it on a batch "
            "first, or wrap it: x = keras.Input(shape); keras.Model(x, model(x))."
        )
    if isinstance(shape, dict):
        return {
            k: keras.Input(s[1:], dtype=model.input_dtype, name=k)
            for k, s in shape.items()
        }
    shapes = shape if isinstance(shape[0], (list, tuple)) else [shape]
    return [keras.Input(tuple(s)[1:], dtype=model.input_dtype) for s in shapes]


def _input_dtype(tensor):
    """What to hand in: of half precision is what Keras made of it on the way in."""
    half = tensor.dtype in ("float16", "bfloat16")
    return "float32" if half else tensor.dtype


def _symbolic(value):
    return isinstance(value, keras.KerasTensor)


@contextlib.contextmanager
def _recording(anchor):
    """Records layers that are called on constants too (embeddings of positions).

    Keras would compute those at once, and the weights would become constants.
    """
    original = keras.layers.Layer.__call__

    def call(self, *args, **kwargs):
        flat = keras.tree.flatten((args, kwargs))
        # Within a layer that only finds its output's shape nothing is recorded.
        recorded = self.weights and tf.executing_eagerly()
        if recorded and not any(map(_symbolic, flat)):
            args, kwargs = keras.tree.map_structure(
                lambda v: _constant(v, anchor), (args, kwargs)
            )
        return original(self, *args, **kwargs)

    keras.layers.Layer.__call__ = call
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = original


def _constant(value, anchor):
    if not keras.ops.is_tensor(value) and not isinstance(value, np.ndarray):
        return value
    return ConstantTensor(keras.ops.convert_to_numpy(value))(anchor)


def _with_parameters(layer, outputs, args, kwargs, anchor, parameters):
    """Plays the recorded calls again, with layers where weights were read."""
    given = [t for t in keras.tree.flatten((args, kwargs)) if _symbolic(t)]
    nodes = calls_between(given, outputs)
    if not any(map(_weights_read, nodes)):
        return outputs
    new = {id(t): t for t in given}
    replay = _Replay(layer, nodes, outputs, parameters)

    def value_of(argument):
        if isinstance(argument, keras.Variable):
            return replay.parameter(argument)(anchor)
        return new.get(id(argument), argument) if _symbolic(argument) else argument

    for node in nodes:
        if id(node) in replay.done:
            continue
        found = replay.layer_for(node)
        if found is None:
            call = (node.arguments.args, node.arguments.kwargs)
            call_args, call_kwargs = keras.tree.map_structure(value_of, call)
            results = keras.tree.flatten(node.operation(*call_args, **call_kwargs))
            produced = node.outputs
        else:
            made, source, produced = found
            results = [made(value_of(source))]
        new |= {id(old): result for old, result in zip(produced, results, strict=True)}
    return keras.tree.map_structure(
        lambda t: new.get(id(t), t) if _symbolic(t) else t, outputs
    )


class _Replay:
    """Finds the layers that stand for operations on weights, each made once."""

    def __init__(self, layer, nodes, outputs, parameters):
        self.layer = layer
        self.parameters = parameters
        self.results = {id(t) for t in keras.tree.flatten(outputs)}
        self.readers = {}
        self.done = set()
        for node in nodes:
            for tensor in node.input_tensors:
                self.readers.setdefault(id(tensor), []).append(node)

    def layer_for(self, node):
        """`(layer, its input, the recorded outputs)`, or `None`.

        A product with a matrix is a Dense layer, with the bias that follows; a product
        or sum with a vector over the last axis is an `Affine`.
        """
        name = type(node.operation).__name__
        operands = list(node.arguments.args[:2])
        weights = [v for v in operands if isinstance(v, keras.Variable)]
        if len(weights) != 1 or len(operands) != 2:
            return None
        (weight,) = weights
        (x,) = [v for v in operands if v is not weight]
        if not _symbolic(x):
            return None
        if name == "Matmul" and operands[1] is weight and len(weight.shape) == 2:
            following = self._bias_of(node)
            bias = None if following is None else _weights_read(following)[0]
            made = self._once((weight, bias), self._dense)
            if following is None:
                return made, x, node.outputs
            self.done.add(id(following))
            return made, x, following.outputs
        fits = tuple(weight.shape) == tuple(x.shape[-1:])
        if name in ("Multiply", "Add") and fits and len(x.shape) > 1:
            role = "scale" if name == "Multiply" else "shift"
            return self._once((weight, role), self._affine), x, node.outputs
        return None

    def _bias_of(self, node):
        """The call that adds a vector to the product and alone reads it."""
        (product,) = node.outputs
        readers = self.readers.get(id(product), [])
        if len(readers) != 1 or id(product) in self.results:
            return None
        (reader,) = readers
        weights = _weights_read(reader)
        adds = type(reader.operation).__name__ == "Add" and len(weights) == 1
        fits = adds and tuple(weights[0].shape) == tuple(product.shape[-1:])
        return reader if fits else None

    def parameter(self, variable):
        """The `Parameter` that hands a weight to other operations."""

        def make(variable):
            return parts.parameter(
                self.layer,
                self._name(variable),
                parts.numpy(variable),
                trainable=variable.trainable,
            )

        return self._once((variable,), make)

    def _dense(self, kernel, bias):
        made = parts.dense(
            self.layer,
            self._name(kernel),
            parts.numpy(kernel),
            None if bias is None else parts.numpy(bias),
        )
        made.trainable = made.trainable and kernel.trainable
        return made

    def _affine(self, weight, role):
        values = {role: parts.numpy(weight)}
        return parts.affine(
            self.layer,
            self._name(weight),
            **values,
            trainable=weight.trainable and self.layer.trainable,
        )

    def _once(self, key, make):
        ids = tuple(id(k) if isinstance(k, keras.Variable) else k for k in key)
        if ids not in self.parameters:
            variables = [k for k in key if isinstance(k, keras.Variable)]
            self.parameters[ids] = (variables, make(*key))
        return self.parameters[ids][1]

    def _name(self, variable):
        return f"{self.layer.name}_{variable.name}"


def _weights_read(node):
    flat = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    return [v for v in flat if isinstance(v, keras.Variable)]


def _check_complete(layer, copied, outputs, parameters):
    """Every weight must be in the recording, or training would leave it out."""
    found = {id(v) for variables, _ in parameters.values() for v in variables}
    for node in calls_between((), outputs):
        if isinstance(node.operation, keras.layers.Layer):
            found |= {id(v) for v in node.operation.variables}
    lost = [v.path for v in copied.trainable_variables if id(v) not in found]
    if lost:
        raise NotTraceableError(
            f"{layer.name!r} reads weights in a way that is not recorded: "
            f"{', '.join(lost[:3])}. Use them in `keras.ops` together with a tensor "
            "that comes from the input."
        )


def _reason(layer, err):
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    first = [line for line in lines if not line.startswith("Exception enc")] or [
        type(err).__name__
    ]
    return (
        f"The call of {layer.name!r} ({type(layer).__name__}) cannot be recorded: "
        f"{first[0][:200]}"
    )
