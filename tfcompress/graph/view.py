"""A read-only view of a flat functional model: calls, edges, consumers.

Example:
    ```python
    graph = Graph(flatten(model))
    for call in graph.calls:
        print(call.operation.name, [t.shape for t in call.outputs])
    ```
"""

import json
import re

import keras

_SCOPE = re.compile(r"[A-Za-z0-9_.>-]+")


class Graph:
    """The calls of a functional model in execution order, and what feeds what.

    A *call* is Keras' node: an operation applied to tensors, with `operation`,
    `arguments`, `input_tensors` and `outputs`. A shared layer has several calls.

    Args:
        model: Built functional `keras.Model` or `Sequential` without nested models
            (see `flatten`).
    """

    def __init__(self, model):
        self.model = model
        function = functional(model)
        by_depth = function._nodes_by_depth
        nodes = [
            node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
        ]
        self.calls = [node for node in nodes if not node.is_input]
        self.inputs = list(function.inputs)
        self.outputs = list(function.outputs)
        self.inputs_struct = function._inputs_struct
        self.outputs_struct = function._outputs_struct
        self._output_ids = {id(t) for t in self.outputs}
        self._producers = {id(t): call for call in self.calls for t in call.outputs}
        self._consumers = {}
        for call in self.calls:
            for tensor in call.input_tensors:
                self._consumers.setdefault(id(tensor), []).append(call)

    def producer(self, tensor):
        """The call that computes `tensor`; `None` for a model input."""
        return self._producers.get(id(tensor))

    def consumers(self, tensor):
        """The calls that read `tensor`."""
        return self._consumers.get(id(tensor), [])

    def only_consumer(self, tensor):
        """The one call that reads `tensor`, if nothing else sees it, else `None`."""
        found = self.consumers(tensor)
        if len(found) != 1 or self.is_output(tensor):
            return None
        return found[0]

    def is_output(self, tensor):
        """Whether `tensor` is an output of the model."""
        return id(tensor) in self._output_ids


def calls_between(inputs, outputs):
    """The calls that compute `outputs` from `inputs`, in an order of execution.

    Unlike `Graph` it needs no model yet.

    Args:
        inputs: Symbolic tensors at which to stop, any structure.
        outputs: Tensors, any structure; what is not symbolic is passed over.

    Returns:
        List of calls.
    """
    stop = {id(t) for t in keras.tree.flatten(inputs)}
    seen, order = set(), []
    stack = [(t, False) for t in reversed(keras.tree.flatten(outputs))]
    while stack:
        tensor, done = stack.pop()
        history = getattr(tensor, "_keras_history", None)
        if history is None or history.operation is None or id(tensor) in stop:
            continue
        node = history.operation._inbound_nodes[history.node_index]
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((tensor, True))
            stack.extend((t, False) for t in node.input_tensors)
    return [node for node in order if not node.is_input]


def has_mask(*tensors):
    """Whether Keras carries a mask (of `Masking`, `mask_zero`) along with a tensor."""
    return any(getattr(t, "_keras_mask", None) is not None for t in tensors)


def is_of(package, thing):
    """Whether a class or function was defined in a package."""
    return thing.__module__.partition(".")[0] == package


def functional(model):
    """The graph of a functional or Sequential model; `None` if there is none.

    One whose class has a `call` of its own need not compute what its graph does.
    """
    if not is_of("keras", type(model).call):
        return None
    if isinstance(model, keras.Sequential):
        model = getattr(model, "_functional", None)
    return model if hasattr(model, "_nodes_by_depth") else None


def inputs_struct(model):
    """The structure in which a model takes its symbolic inputs; `None` if unknown."""
    return getattr(functional(model), "_inputs_struct", None)


def symbolic_inputs(model):
    """The inputs of a model in order.

    Raises:
        ValueError: If the model is subclassed and has none.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ValueError(
            f"Model {model.name!r} is subclassed and has no symbolic inputs. Wrap it: "
            "x = keras.Input(shape); keras.Model(x, model(x))."
        )
    return inputs


def check_scopes(model):
    """Raises unless every layer has a name that TensorFlow's graphs take.

    Keras finds out in the middle of a call, and from then on puts the names of the
    layers around it in front of every variable that it makes.

    Raises:
        ValueError: If one has not.
    """
    # Inputs are not called, and may be called anything.
    wrong = [
        x.name
        for x in model._flatten_layers()
        if not (isinstance(x, keras.layers.InputLayer) or _SCOPE.fullmatch(x.name))
    ]
    # The outermost scope is more particular.
    wrong += [] if re.match(r"[A-Za-z0-9.]", model.name) else [model.name]
    if wrong:
        raise ValueError(
            f"Layer {wrong[0]!r} of model {model.name!r} has a name that no TensorFlow "
            "graph takes: letters, digits and _ . - only. Build the model with "
            "another, and give it the weights: new.set_weights(model.get_weights())."
        )


def flat_call(model):
    """Returns a function that runs a model for inference on its inputs in order."""
    struct = inputs_struct(model)

    def infer(*inputs):
        packed = inputs[0]
        if struct is not None:
            packed = keras.tree.pack_sequence_as(struct, list(inputs))
        return model(packed, training=False)

    return infer


def config_text(layer):
    """A layer's config as JSON without names, which Keras numbers through.

    Empty where a layer has none; functions of a user's own count by their type.
    """
    try:
        config = layer.get_config()
    except NotImplementedError:
        return ""
    return json.dumps(
        _without_names(config), sort_keys=True, default=lambda o: type(o).__name__
    )


def _without_names(config):
    if isinstance(config, dict):
        pairs = config.items()
        return {str(k): _without_names(v) for k, v in pairs if k != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config


def activation_name(operation):
    """Name of the activation a layer applies by itself; `"linear"` if none."""
    activation = getattr(operation, "activation", None)
    return "linear" if activation is None else getattr(activation, "__name__", "custom")
